"""The board's verifier against `cryptography`: the same verdict on signatures, and on what came of them."""

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from hypothesis import given
from hypothesis import strategies as st

from merino_runtime.delivery.ed25519 import is_public_key, verify
from tests import ed25519_signer

seeds = st.binary(min_size=32, max_size=32)


def other_verdict(key, message, signature):
    try:
        Ed25519PublicKey.from_public_bytes(key).verify(signature, message)
    except (InvalidSignature, ValueError):
        return False
    return True


@given(seed=seeds, message=st.binary(max_size=500))
def test_what_cryptography_signs_is_verified(seed, message):
    private = Ed25519PrivateKey.from_private_bytes(seed)
    key, signature = private.public_key().public_bytes_raw(), private.sign(message)
    assert verify(key, message, signature)


@given(seed=seeds, message=st.binary(max_size=50), data=st.data())
def test_changed_signatures_keys_and_messages_get_the_same_verdict(seed, message, data):
    private = Ed25519PrivateKey.from_private_bytes(seed)
    parts = [private.public_key().public_bytes_raw(), message, private.sign(message)]
    which = data.draw(st.integers(0, 2))
    parts[which] = data.draw(st.one_of(
        changed(parts[which]), st.binary(min_size=len(parts[which]), max_size=len(parts[which])),
        st.just(parts[which][:-1]), st.just(parts[which] + b"\0"),
    ))  # fmt: skip
    assert verify(*parts) == other_verdict(*parts)


def changed(content):
    def flipped(bits):
        number = int.from_bytes(content, "little")
        for bit in bits:
            number ^= 1 << bit
        return number.to_bytes(len(content), "little")

    return st.sets(st.integers(0, max(0, 8 * len(content) - 1)), max_size=3 if content else 0).map(flipped)


@given(seed=seeds, message=st.binary(max_size=20), multiple=st.integers(0, 15))
def test_scalars_beyond_the_order_get_the_same_verdict(seed, message, multiple):
    private = Ed25519PrivateKey.from_private_bytes(seed)
    key, signature = private.public_key().public_bytes_raw(), private.sign(message)
    s = int.from_bytes(signature[32:], "little") + multiple * ed25519_signer.ORDER
    signature = signature[:32] + (s % 2**256).to_bytes(32, "little")
    assert verify(key, message, signature) == other_verdict(key, message, signature) == (multiple == 0)


def test_parts_of_small_order_get_the_same_verdict():
    """Of a key of small order itself `cryptography` takes signatures; that is tested as refused on its own."""
    points, verdicts = ed25519_signer.small_points(), set()
    for key_part in points:
        for number, r_part in enumerate((points[0], points[0], points[3])):
            message = b"%d" % number
            key, signature = ed25519_signer.sign(b"s" * 32, message, key_part, r_part)
            assert verify(key, message, signature) == other_verdict(key, message, signature)
            verdicts.add(verify(key, message, signature))
    assert verdicts == {True, False}


def test_only_keys_that_cryptography_takes_are_taken():
    for number in range(2, 100):
        key = number.to_bytes(32, "little")
        assert is_public_key(key) == (ed25519_signer.point_of(number) is not None)
