"""Ed25519 by the text of RFC 8032 in affine coordinates: a second way to every point, and a signer for tests.

Python 3.6, no packages. It can do what no honest signer does: keys with a part of small order.
"""
import hashlib

P = 2 ** 255 - 19
ORDER = 2 ** 252 + 27742317777372353535851937790883648493
D = -121665 * pow(121666, P - 2, P) % P
ZERO = (0, 1)


def add(p, q):
    both = D * p[0] * q[0] * p[1] * q[1]
    inverse = pow(1 - both * both, P - 2, P)  # of both denominators
    x = (p[0] * q[1] + q[0] * p[1]) * (1 - both) * inverse
    y = (p[1] * q[1] + p[0] * q[0]) * (1 + both) * inverse
    return x % P, y % P


def times(number, point):
    total = ZERO
    while number:
        if number & 1:
            total = add(total, point)
        point, number = add(point, point), number >> 1
    return total


def point_of(y, odd=0):
    """The point with that y; None where the curve has none."""
    square = (y * y - 1) * pow(D * y * y + 1, P - 2, P) % P
    x = pow(square, (P + 3) // 8, P)
    if (x * x - square) % P:
        x = x * pow(2, (P - 1) // 4, P) % P
    if (x * x - square) % P:
        return None
    return (P - x if x % 2 != odd else x), y


def encode(point):
    return (point[1] + (point[0] % 2 << 255)).to_bytes(32, "little")


BASE = point_of(4 * pow(5, P - 2, P) % P)


def small_points():
    """The eight points whose order divides 8."""
    for y in range(2, 100):
        point = point_of(y)
        eighth = times(ORDER, point) if point else ZERO
        if times(4, eighth) != ZERO:
            return [times(number, eighth) for number in range(8)]
    raise AssertionError("half of the points of the curve lead to one of order 8")


def secret_of(seed):
    digest = hashlib.sha512(seed).digest()
    return int.from_bytes(digest[:32], "little") & (1 << 254) - 8 | 1 << 254, digest[32:]


def hashed(*parts):
    return int.from_bytes(hashlib.sha512(b"".join(parts)).digest(), "little")


def public_key_of(seed):
    return encode(times(secret_of(seed)[0], BASE))


def sign(seed, message, key_part=ZERO, r_part=ZERO):
    """(public key, signature); with the points of small order `key_part` and `r_part` added to key and R."""
    secret, prefix = secret_of(seed)
    key = encode(add(times(secret, BASE), key_part))
    r = hashed(prefix, message) % ORDER
    r_bytes = encode(add(times(r, BASE), r_part))
    s = (r + hashed(r_bytes, key, message) * secret) % ORDER
    return key, r_bytes + s.to_bytes(32, "little")
