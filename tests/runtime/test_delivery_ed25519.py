"""The board's verifier of signatures: the RFC's vectors, a second implementation, and the cases where others differ."""
import hashlib
import random

import pytest

from merino_runtime.delivery.ed25519 import is_public_key, verify
from tests.ed25519_signer import (
    BASE,
    ORDER,
    ZERO,
    P,
    add,
    encode,
    hashed,
    point_of,
    public_key_of,
    secret_of,
    sign,
    small_points,
    times,
)

# RFC 8032, 7.1: (seed, public key, message, signature).
RFC_VECTORS = [(
    "9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60",
    "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a", "",
    "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e065224901555fb8821590a33bacc61e39701cf9b46bd25bf5f0595bbe246551"
    "41438e7a100b",
), (
    "4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb",
    "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c", "72",
    "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d"
    "291612bb0c00",
), (
    "c5aa8df43f9f837bedb7442f31dcb7b166d38535076f094b85ce3a2e0b4458f7",
    "fc51cd8e6218a1a38da47ed00230f0580816ed13ba3303ac5deb911548908025", "af82",
    "6291d657deec24024827e69c3abe01a30ce548a284743a445e3680d7db5ac3ac18ff9b538d16f290ae67f760984dc6594a7c15e9716ed28dc027"
    "beceea1ec40a",
), (
    "833fe62409237b9d62ec77587520911e9a759cec1d19755b7da901b96dca3d42",
    "ec172b93ad5e563bf4932c70e1245034c35467ef2efd4d64ebf819683467e2bf",
    hashlib.sha512(b"abc").hexdigest(),
    "dc2a4459e7369633a52b1bf277839a00201009a3efbf3ecb69bea2186c26b58909351fc9ac90b3ecfdfbc7c66431e0303dca179c138ac17ad9be"
    "f1177331a704",
)]  # fmt: skip
SEED = b"merino".ljust(32)
MESSAGE = b"a manifest"


@pytest.mark.parametrize("vector", RFC_VECTORS, ids=range(len(RFC_VECTORS)))
def test_vectors_of_the_rfc(vector):
    seed, key, message, signature = map(bytes.fromhex, vector)
    assert sign(seed, message) == (key, signature), "the tests' own signer follows the RFC"
    assert verify(key, message, signature)
    assert not verify(key, message + b"\0", signature)


def test_every_bit_of_a_signature_and_of_a_key_counts():
    key, signature = sign(SEED, MESSAGE)
    assert verify(key, MESSAGE, signature)
    for bit in range(0, 512, 3):
        assert not verify(key, MESSAGE, flipped(signature, bit)), bit
    for bit in range(0, 256, 3):
        assert not verify(flipped(key, bit), MESSAGE, signature), bit


def flipped(data, bit):
    return (int.from_bytes(data, "little") ^ 1 << bit).to_bytes(len(data), "little")


def test_random_keys_and_messages_as_the_tests_own_signer_makes_them():
    numbers = random.Random(8032)
    for length in (0, 1, 63, 64, 1000, 100000):
        seed, message = (bytes(numbers.getrandbits(8) for _ in range(size)) for size in (32, length))
        key, signature = sign(seed, message)
        assert verify(key, message, signature)
        assert not verify(public_key_of(SEED), message, signature)


@pytest.mark.parametrize("length", [0, 1, 32, 63, 65, 128])
def test_other_lengths_are_refused(length):
    key, signature = sign(SEED, MESSAGE)
    assert not verify(key, MESSAGE, (signature * 2)[:length])
    if length != len(key):
        assert not is_public_key((key * 4)[:length]) and not verify((key * 4)[:length], MESSAGE, signature)


def test_a_scalar_of_the_order_or_more_is_refused():
    """S + L satisfies the equation as well: without this, anyone could make a second signature of a first."""
    key, signature = sign(SEED, MESSAGE)
    s = int.from_bytes(signature[32:], "little")
    more = [s + count * ORDER for count in range(1, 16) if s + count * ORDER < 2 ** 256]
    assert len(more) > 10
    for scalar in more:
        assert not verify(key, MESSAGE, signature[:32] + scalar.to_bytes(32, "little")), scalar


def test_a_key_of_small_order_verifies_nothing():
    """For such a key anybody finds signatures: R = -k A and S = 0, here until one satisfies the equation."""
    points = small_points()
    assert len({encode(point) for point in points}) == 8
    for key in points:
        assert not is_public_key(encode(key))
        for number in range(64):
            for r in points:
                message = b"%d" % number
                k = hashed(encode(r), encode(key), message) % ORDER
                if add(r, times(k % 8, key)) == ZERO:
                    assert not verify(encode(key), message, encode(r) + bytes(32))


def test_the_equation_is_the_one_without_the_cofactor():
    """With a part of small order in the key, or in R, other implementations say yes where this one says no."""
    point = small_points()[1]
    outcomes = set()
    for number in range(24):
        message = b"%d" % number
        key, signature = sign(SEED, message, key_part=point)
        k = hashed(signature[:32], key, message) % ORDER
        outcomes.add(verify(key, message, signature))
        assert verify(key, message, signature) == (k % 8 == 0)
    assert outcomes == {True, False}
    for r_part in small_points()[1:]:
        key, signature = sign(SEED, MESSAGE, r_part=r_part)
        assert not verify(key, MESSAGE, signature)


def test_a_key_has_one_encoding():
    points = 0
    for y in range(P, 2 ** 255):  # the same as y - P, if it were taken
        for sign_bit in (0, 1):
            point = point_of(y - P, sign_bit)
            points += point is not None
            assert not is_public_key((y | sign_bit << 255).to_bytes(32, "little"))
            if point is not None and y - P > 1:
                assert is_public_key(encode(point))
    assert points > 10
    for y in (1, P - 1):  # x is 0 and has no sign
        assert not is_public_key((y | 1 << 255).to_bytes(32, "little"))


def test_the_r_of_a_signature_has_one_encoding():
    """R is small here, so that its y can be written in a second way; the key makes the equation hold."""
    secret, _ = secret_of(SEED)
    key = encode(times(secret, BASE))
    taken = set()
    for r_bytes in (encode(ZERO), (P + 1).to_bytes(32, "little"), (1 | 1 << 255).to_bytes(32, "little")):
        s = hashed(r_bytes, key, MESSAGE) * secret % ORDER
        if verify(key, MESSAGE, r_bytes + s.to_bytes(32, "little")):
            taken.add(r_bytes)
    assert taken == {encode(ZERO)}
