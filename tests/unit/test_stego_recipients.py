"""stego.recipients: every kind opens with its key in its object under its name, and refuses all else alike."""

from __future__ import annotations

import hmac
import os
import struct
import subprocess
import traceback
from collections.abc import Callable
from functools import cache
from hashlib import sha3_256, sha256, shake_256
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given, settings
from hypothesis import strategies as st

from stego import recipients, seal
from stego.errors import SealError
from stego.recipients import KINDS, Kind, recipient_of, unwrap_with, wrap_to

KEY = bytes(range(100, 132))
AAD = seal.Context(bytes(range(16)), 512, 512, 12, True, 1, "segmented", bytes(range(32))).aad()
SIZES = {"x25519": 80, "xwing": 1168, "rsa": 384}


@cache
def pair(kind: Kind) -> tuple[bytes, bytes]:
    return recipients.generate(kind)


def wrapped(kind: Kind, name: str = "archive of Nowhere") -> bytes:
    return wrap_to(kind, pair(kind)[1], name, KEY, AAD)


def refused(act: Callable[[], object]) -> None:
    with pytest.raises(SealError) as caught:
        act()
    assert caught.value.args == ("refused",)
    assert caught.value.__cause__ is None and caught.value.__context__ is None
    assert "InvalidTag" not in "".join(traceback.format_exception(caught.value))


@pytest.mark.parametrize("kind", KINDS)
def test_a_wrap_opens_with_the_private_key(kind: Kind) -> None:
    wrap = wrapped(kind)
    assert unwrap_with(wrap, pair(kind)[0], AAD) == KEY
    assert recipient_of(wrap) == (kind, "archive of Nowhere")
    assert len(wrap) == 2 + 18 + SIZES[kind]
    assert wrap != wrapped(kind), "every wrap has randomness of its own"
    assert recipients.public_of(kind, pair(kind)[0]) == pair(kind)[1]
    recipients.check_public(kind, pair(kind)[1])


@settings(max_examples=25, deadline=None)
@given(
    kind=st.sampled_from(("x25519", "xwing")),
    key=st.binary(min_size=32, max_size=32),
    name=st.text(st.characters(min_codepoint=32, max_codepoint=126), min_size=1, max_size=64),
    aad=st.binary(max_size=200),
)
def test_any_name_key_and_context(kind: Kind, key: bytes, name: str, aad: bytes) -> None:
    wrap = wrap_to(kind, pair(kind)[1], name, key, aad)
    assert recipient_of(wrap) == (kind, name)
    assert unwrap_with(wrap, pair(kind)[0], aad) == key


@pytest.mark.parametrize("kind", KINDS)
def test_every_wrong_opening_is_the_same_refusal(kind: Kind) -> None:
    wrap, private = wrapped(kind), pair(kind)[0]
    other = recipients.generate(kind)[0]
    body = 2 + len("archive of Nowhere")
    refused(lambda: unwrap_with(wrap, other, AAD))
    refused(lambda: unwrap_with(wrap, private, AAD + b"x"))
    for wrong in (b"", b"short", private[:-1], private + b"\0", os.urandom(32)):
        refused(lambda wrong=wrong: unwrap_with(wrap, wrong, AAD))
    for kind_of_key in KINDS:
        if kind_of_key != kind and {kind, kind_of_key} != {"x25519", "xwing"}:
            refused(lambda k=kind_of_key: unwrap_with(wrap, pair(k)[0], AAD))
    for cut in (0, 1, 2, 3, body - 1, body, body + 1, len(wrap) - 17, len(wrap) - 1):
        refused(lambda cut=cut: unwrap_with(wrap[:cut], private, AAD))
    refused(lambda: unwrap_with(wrap + b"\0", private, AAD))
    for at in {*range(body), *range(body, len(wrap), 41), len(wrap) - 1}:
        flipped = bytearray(wrap)
        flipped[at] ^= 1 << at % 8
        refused(lambda flipped=flipped: unwrap_with(bytes(flipped), private, AAD))


@pytest.mark.parametrize("kind", KINDS)
def test_a_wrap_renamed_or_of_another_kind_is_refused(kind: Kind) -> None:
    wrap = wrapped(kind, "alice")
    refused(lambda: unwrap_with(wrap.replace(b"alice", b"mallo"), pair(kind)[0], AAD))
    for version in (0, 1, 2, 3, 4, 5, 255):
        if version != wrap[0]:
            refused(lambda version=version: unwrap_with(bytes([version]) + wrap[1:], pair(kind)[0], AAD))


@given(st.binary(max_size=1400))
def test_garbage_is_refused(data: bytes) -> None:
    for kind in KINDS:
        refused(lambda kind=kind: unwrap_with(data, pair(kind)[0], AAD))


def test_wraps_of_the_ring_are_told_apart() -> None:
    ours = seal.wrap_key(KEY, kek=bytes(32), kek_id="pat-" + "a" * 26)
    assert recipients.is_ring_wrap(ours) and not any(recipients.is_ring_wrap(wrapped(kind)) for kind in KINDS)
    assert not recipients.is_ring_wrap(b"")
    refused(lambda: recipient_of(ours))
    for kind in KINDS:
        refused(lambda kind=kind: seal.wrap_kek_id(wrapped(kind)))


def test_public_keys_of_wrong_form_are_a_callers_error() -> None:
    small = rsa.generate_private_key(65537, 2048).public_key()
    curve = ec.generate_private_key(ec.SECP256R1()).public_key()
    der = [key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo) for key in (small, curve)]
    cases: list[tuple[str, bytes]] = [("rsa", b""), ("rsa", bytes(32)), *(("rsa", each) for each in der)]
    cases += [("x25519", bytes(31)), ("x25519", bytes(32)), ("xwing", bytes(32)), ("xwing", pair("xwing")[1][:-1])]
    cases += [("pgp", bytes(32))]
    for kind, public in cases:
        with pytest.raises(ValueError):
            recipients.check_public(kind, public)
    for name, key in (("", KEY), ("n" * 65, KEY), ("n", b"short")):
        with pytest.raises(ValueError):
            wrap_to("x25519", pair("x25519")[1], name, key, AAD)
    with pytest.raises(ValueError):
        wrap_to("x25519", pair("x25519")[1], "J\u00f6rg", KEY, AAD)


# --- an opener of its own: RFC 9180 and the X-Wing draft in plain Python, after docs/payload-format.md ---


def extract(salt: bytes, suite: bytes, label: bytes, ikm: bytes) -> bytes:
    return hmac.digest(salt or bytes(32), b"HPKE-v1" + suite + label + ikm, "sha256")


def expand(prk: bytes, suite: bytes, label: bytes, info: bytes, n: int) -> bytes:
    info, out, block = struct.pack(">H", n) + b"HPKE-v1" + suite + label + info, b"", b""
    while len(out) < n:
        block = hmac.digest(prk, block + info + bytes([len(out) // 32 + 1]), "sha256")
        out += block
    return out[:n]


def hpke_open(kem: int, secret: bytes, ciphertext: bytes, info: bytes) -> bytes:
    """RFC 9180 section 5.1, base mode, HKDF-SHA256 and AES-256-GCM."""
    suite = b"HPKE" + struct.pack(">HHH", kem, 1, 2)
    ids, hashed = (extract(b"", suite, label, ikm) for label, ikm in ((b"psk_id_hash", b""), (b"info_hash", info)))
    schedule = b"\0" + ids + hashed
    prk = extract(secret, suite, b"secret", b"")
    key = expand(prk, suite, b"key", schedule, 32)
    return AESGCM(key).decrypt(expand(prk, suite, b"base_nonce", schedule, 12), ciphertext, b"")


def x25519_secret(enc: bytes, private: bytes) -> bytes:
    """RFC 9180 section 4.1, DHKEM(X25519, HKDF-SHA256)."""
    own = X25519PrivateKey.from_private_bytes(private)
    shared = own.exchange(X25519PublicKey.from_public_bytes(enc))
    suite = b"KEM" + struct.pack(">H", 0x20)
    prk = extract(b"", suite, b"eae_prk", shared)
    return expand(prk, suite, b"shared_secret", enc + own.public_key().public_bytes_raw(), 32)


def xwing_secret(enc: bytes, seed: bytes) -> bytes:
    """The X-Wing draft: SHA3-256(ss_M || ss_X || ct_X || pk_X || label)."""
    expanded = shake_256(seed).digest(96)
    curve = X25519PrivateKey.from_private_bytes(expanded[64:])
    ss_m = MLKEM768PrivateKey.from_seed_bytes(expanded[:64]).decapsulate(enc[:1088])
    ss_x = curve.exchange(X25519PublicKey.from_public_bytes(enc[1088:]))
    label = bytes.fromhex("5c2e2f2f5e5c")
    return sha3_256(ss_m + ss_x + enc[1088:] + curve.public_key().public_bytes_raw() + label).digest()


@pytest.mark.parametrize(("kind", "kem", "size"), [("x25519", 0x20, 32), ("xwing", 0x647A, 1120)])
def test_another_opener_reads_a_wrap(kind: Kind, kem: int, size: int) -> None:
    wrap = wrapped(kind, "partner")
    head, enc, sealed = wrap[:9], wrap[9 : 9 + size], wrap[9 + size :]
    info = b"palimpsest/wrap-to/v1\0" + head + sha256(AAD).digest()
    secret = (x25519_secret if kind == "x25519" else xwing_secret)(enc, pair(kind)[0])
    assert head == bytes([2 if kind == "x25519" else 3, 7]) + b"partner"
    assert hpke_open(kem, secret, sealed, info) == KEY


def test_openssl_opens_an_rsa_wrap(tmp_path: Path) -> None:
    wrap = wrapped("rsa", "partner")
    (tmp_path / "key.der").write_bytes(pair("rsa")[0])
    (tmp_path / "wrap").write_bytes(wrap[9:])
    label = b"palimpsest/wrap-to/v1\0" + wrap[:9] + sha256(AAD).digest()
    options = ("rsa_padding_mode:oaep", "rsa_oaep_md:sha256", "rsa_mgf1_md:sha256", f"rsa_oaep_label:{label.hex()}")
    command = ["openssl", "pkeyutl", "-decrypt", "-keyform", "DER", "-inkey", "key.der", "-in", "wrap"]
    command += [word for option in options for word in ("-pkeyopt", option)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, timeout=30, check=True)
    assert done.stdout == KEY


def test_the_drafts_first_vector_gives_the_drafts_key() -> None:
    """draft-connolly-cfrg-xwing-kem, appendix C, first key pair: the beginning of its public key."""
    seed = bytes.fromhex("7f9c2ba4e88f827d616045507605853ed73b8093f6efbc88eb1a6eacfa66ef26")
    public = recipients.public_of("xwing", seed)
    assert public.hex().startswith("e2236b35a8c24b39b10aa1323a96a919a2ced88400633a7b07131713fc14b2b5b19cfc3d")
