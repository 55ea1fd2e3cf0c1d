"""Verifies Ed25519 signatures (RFC 8032, section 5.1) in Python's integers, so that a board needs no package for it.

All inputs are public, so timing reveals nothing secret. One verification takes 10 ms on x86, and
an install makes one: a compiled verifier (PyNaCl, with cffi, for each Python and architecture) would save nothing that
a user notices, and would have to be delivered before what it verifies.

Stricter than the RFC where implementations differ, so that a signature is valid everywhere or nowhere: S below the
group's order, points in their one canonical encoding, no public key of small order, and the equation without the
cofactor: S B = R + k A.
"""
import hashlib
from typing import NamedTuple, Optional

P = 2 ** 255 - 19  # the field
ORDER = 2 ** 252 + 27742317777372353535851937790883648493  # of the base point
D = -121665 * pow(121666, P - 2, P) % P  # the curve: -x^2 + y^2 = 1 + D x^2 y^2
ROOT_OF_MINUS_1 = pow(2, (P - 1) // 4, P)
SCALAR_BITS = 253
KEY_BYTES, SIGNATURE_BYTES = 32, 64


class Point(NamedTuple):
    """Extended coordinates: the point (x / z, y / z), with t = x y / z."""
    x: int
    y: int
    z: int
    t: int


ZERO = Point(0, 1, 1, 0)


def verify(public_key: bytes, message: bytes, signature: bytes) -> bool:
    """Return whether `signature` [64 bytes] over `message` was made with the private key of `public_key` [32 bytes]."""
    key = _key_point(public_key)
    if key is None or len(signature) != SIGNATURE_BYTES:
        return False
    r_bytes, s = signature[:32], int.from_bytes(signature[32:], "little")
    if s >= ORDER:
        return False
    k = int.from_bytes(hashlib.sha512(r_bytes + public_key + message).digest(), "little") % ORDER
    # Compared as bytes: an encoding of R that is not the canonical one is thereby refused.
    return _encode(_sum_of_products(s, BASE, k, _negative(key))) == r_bytes


def is_public_key(public_key: bytes) -> bool:
    """Return whether `verify` may ever accept a signature by this key."""
    return _key_point(public_key) is not None


def _key_point(public_key: bytes) -> Optional[Point]:
    """Return the point of a public key; None if it is no point, or one of small order, for which anybody can make
    signatures."""
    point = _decode(public_key)
    if point is None:
        return None
    eightfold = _double(_double(_double(point)))
    return None if eightfold.x == 0 and eightfold.y == eightfold.z else point


def _decode(encoded: bytes) -> Optional[Point]:
    """Return the point of an encoding (RFC 8032, 5.1.3); None if there is none, or if the encoding is not canonical."""
    if len(encoded) != KEY_BYTES:
        return None
    y = int.from_bytes(encoded, "little")
    sign, y = y >> 255, y & (1 << 255) - 1
    if y >= P:
        return None
    u, v = (y * y - 1) % P, (D * y * y + 1) % P  # x^2 = u / v
    x = u * pow(v, 3, P) * pow(u * pow(v, 7, P), (P - 5) // 8, P) % P
    if (v * x * x + u) % P == 0:
        x = x * ROOT_OF_MINUS_1 % P
    if (v * x * x - u) % P != 0:
        return None
    x = P - x if x & 1 != sign else x  # x = 0 has no sign: both such points are of small order
    return Point(x, y, 1, x * y % P)


def _encode(point: Point) -> bytes:
    inverse = pow(point.z, P - 2, P)
    x, y = point.x * inverse % P, point.y * inverse % P
    return (y | (x & 1) << 255).to_bytes(KEY_BYTES, "little")


def _add(p: Point, q: Point) -> Point:
    """Return the sum of any two points of the curve, equal ones and zero included (RFC 8032, 5.1.4)."""
    a, b = (p.y - p.x) * (q.y - q.x) % P, (p.y + p.x) * (q.y + q.x) % P
    c, d = 2 * D * p.t * q.t % P, 2 * p.z * q.z % P
    e, f, g, h = b - a, d - c, d + c, b + a
    return Point(e * f % P, g * h % P, f * g % P, e * h % P)


def _double(p: Point) -> Point:
    a, b = p.x * p.x % P, p.y * p.y % P
    h = a + b
    e, g = h - (p.x + p.y) ** 2, a - b
    f = 2 * p.z * p.z + g
    return Point(e * f % P, g * h % P, f * g % P, e * h % P)


def _negative(p: Point) -> Point:
    return Point(P - p.x, p.y, p.z, P - p.t)


def _sum_of_products(a: int, p: Point, b: int, q: Point) -> Point:
    """Return a p + b q, computed bit by bit from the top, in the same steps for all numbers."""
    choices = (ZERO, p, q, _add(p, q))
    total = ZERO
    for bit in range(SCALAR_BITS - 1, -1, -1):
        total = _add(_double(total), choices[(a >> bit & 1) | (b >> bit & 1) << 1])
    return total


_base = _decode((4 * pow(5, P - 2, P) % P).to_bytes(KEY_BYTES, "little"))
assert _base is not None
BASE: Point = _base
