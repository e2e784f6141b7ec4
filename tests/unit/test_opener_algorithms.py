"""The plain opener's cryptography and Zstandard against the libraries that the product uses."""

from __future__ import annotations

import base64
import contextlib
import os
import random
from pathlib import Path

import numpy as np
import pytest
import zstandard
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.keybackup import Contents, seal_contents
from gateway.keystate import new_key, new_state
from stego.recipients import KINDS, Kind, generate, wrap_to
from stego.seal import wrap_key
from worker.opener import curves, mlkem, symmetric, zstd
from worker.opener.errors import Damaged, Refused
from worker.opener.keys import Keys, read_backup, read_private
from worker.opener.standards import read_netpbm
from worker.opener.vectors import algorithm_checks

NOW = "2026-01-01T00:00:00+00:00"
TEXT = (Path(__file__).parents[2] / "docs" / "payload-format.md").read_bytes()


@pytest.mark.parametrize("name", [name for name, _ in algorithm_checks()])
def test_published_vectors(name: str) -> None:
    assert dict(algorithm_checks())[name]()


@settings(max_examples=40, deadline=None)
@given(st.binary(min_size=32, max_size=32), st.binary(max_size=300), st.binary(max_size=40), st.data())
def test_gcm_opens_what_the_library_sealed_and_nothing_else(key: bytes, plain: bytes, aad: bytes, data: object) -> None:
    nonce = data.draw(st.binary(min_size=12, max_size=12))  # type: ignore[attr-defined]
    sealed = AESGCM(key).encrypt(nonce, plain, aad)
    assert symmetric.gcm_open(key, sealed, aad, nonce) == plain
    changed = bytearray(sealed)
    changed[data.draw(st.integers(0, len(sealed) - 1))] ^= 1 << data.draw(st.integers(0, 7))  # type: ignore[attr-defined]
    for wrong in (bytes(changed), sealed[:-1], b""):
        with pytest.raises(Refused):
            symmetric.gcm_open(key, wrong, aad, nonce)


@pytest.mark.parametrize("count", [0, 1, 63, 64, 65, 5000])
def test_chacha20_is_the_librarys(count: int) -> None:
    key = os.urandom(32)
    wanted = Cipher(algorithms.ChaCha20(key, bytes(16)), mode=None).encryptor().update(bytes(count))
    assert symmetric.chacha20(key, count) == wanted


def test_curves_are_the_librarys() -> None:
    for _ in range(3):
        ours, theirs = X25519PrivateKey.generate(), X25519PrivateKey.generate().public_key()
        assert curves.x25519(ours.private_bytes_raw(), theirs.public_bytes_raw()) == ours.exchange(theirs)
        signer, message = Ed25519PrivateKey.generate(), os.urandom(100)
        public, signature = signer.public_key().public_bytes_raw(), signer.sign(message)
        assert curves.ed25519_public(signer.private_bytes_raw()) == public
        assert curves.ed25519_signed(public, message, signature)
        wrongs = ((public, message + b"x", signature), (public, message, signature[:32] + bytes(32)))
        further = ((public[:-1], message, signature), (bytes(31) + b"\xff", message, signature))
        assert not any(curves.ed25519_signed(*wrong) for wrong in (*wrongs, *further))


def test_mlkem_is_the_librarys() -> None:
    for _ in range(3):
        seed = os.urandom(64)
        theirs, ours = MLKEM768PrivateKey.from_seed_bytes(seed), mlkem.PrivateKey(seed)
        secret, ciphertext = theirs.public_key().encapsulate()
        assert ours.public == theirs.public_key().public_bytes_raw()
        assert ours.decapsulate(ciphertext) == secret
        wrong = ciphertext[:-1] + bytes([ciphertext[-1] ^ 1])
        assert ours.decapsulate(wrong) == theirs.decapsulate(wrong) != secret


@pytest.mark.parametrize("kind", KINDS)
def test_recipients_open_their_wraps_and_no_others(kind: Kind) -> None:
    private, public = generate(kind)
    context, key = os.urandom(90), os.urandom(32)
    wrap = wrap_to(kind, public, "somebody", key, context)
    as_file = private if kind == "rsa" else base64.b64encode(private) + b"\n"
    keys = Keys(private=(os.urandom(32), read_private(as_file)))
    assert keys.unwrap([os.urandom(50), wrap], context) == [key]
    assert keys.unwrap([wrap], context + b"x") == keys.unwrap([wrap[:-1] + bytes([wrap[-1] ^ 1])], context) == []


def test_ring_wraps_and_backups() -> None:
    key, kek, context = os.urandom(32), os.urandom(32), b"c"
    wrap = wrap_key(key, kek=kek, kek_id="pat-A")
    assert Keys({"pat-A": kek}).unwrap([wrap], context) == [key]
    assert Keys({"pat-A": key}).unwrap([wrap], context) == Keys({"pat-B": kek}).unwrap([wrap], context) == []
    state, patient = new_state(NOW), new_key("pat-X", "patient", NOW)
    backup = seal_contents(Contents(state, (patient,)), "a passphrase", NOW, log2_n=12)
    found = read_backup(backup, "a passphrase")
    assert found.secrets == {each.id: each.secret for each in (*state.keys, patient)}
    assert found.signers == {each.id: each.public for each in state.keys if each.kind == "sign"}
    for data, passphrase in ((backup, "another"), (backup[:-9], "a passphrase"), (b"{}\nx", "a"), (b"", "")):
        with pytest.raises(Refused):
            read_backup(data, passphrase)


def zstd_samples() -> list[bytes]:
    rng = np.random.default_rng(1)
    noise = np.clip(rng.normal(128, 12, 150_000), 0, 255).astype(np.uint8).tobytes()
    return [b"", b"a", b"a" * 1000, bytes(300_000), rng.bytes(5000), TEXT, noise, noise[:300] * 9, *(
        TEXT[at : at + size] for at, size in ((0, 1), (50, 30), (70, 200), (900, 3000))
    )]  # fmt: skip


@pytest.mark.parametrize("level", [1, 3, 9, 19])
@pytest.mark.parametrize("sample", range(len(zstd_samples())))
def test_zstandard_is_the_librarys(level: int, sample: int) -> None:
    data = zstd_samples()[sample]
    for choices in ({}, {"write_checksum": True}, {"write_content_size": False}):
        packed = zstandard.ZstdCompressor(level=level, **choices).compress(data)
        assert zstd.decompress(packed, len(data)) == data
        with pytest.raises(Damaged):
            zstd.decompress(packed, len(data) + 1)


def test_damaged_zstandard_is_refused_or_harmless() -> None:
    packed, rng = zstandard.ZstdCompressor(level=9).compress(TEXT[:8000]), random.Random(1)
    for _ in range(400):
        changed = bytearray(packed)
        for _ in range(rng.randint(1, 3)):
            changed[rng.randrange(len(changed))] = rng.randrange(256)
        with contextlib.suppress(Damaged):
            assert len(zstd.decompress(bytes(changed)[: rng.choice([len(changed), rng.randrange(99)])], 8000)) == 8000


def test_netpbm_files_are_read() -> None:
    wide = np.arange(6, dtype=np.uint16).reshape(2, 3) * 1000
    assert np.array_equal(read_netpbm(b"P5 # made by hand\n3 2\n65535\n" + wide.astype(">u2").tobytes()), wide)
    assert read_netpbm(b"P6\n1 1\n255\n\x01\x02\x03").tolist() == [[[1, 2, 3]]]
    for wrong in (b"P5\n3 2\n255\n123", b"P4\n1 1\n1\n1", b"", b"P5 3"):
        with pytest.raises(Damaged):
            read_netpbm(wrong)
