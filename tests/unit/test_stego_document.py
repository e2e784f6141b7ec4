"""docs/payload-format.md is enough to write another opener: here is one, in plain Python, without a line of `stego`."""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import re
import struct
import zlib
from pathlib import Path

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from numpy.typing import NDArray

from codec.bitplane import LevelTable, choose_levels, split_words
from codec.pixelformat import PixelFormat
from stego import record, seal, segmented
from stego.capsule import seal_capsule
from stego.positions import permutation

DOCUMENT = (Path(__file__).parents[2] / "docs" / "payload-format.md").read_text(encoding="utf-8")
CONTEXT = seal.Context(bytes(range(16)), 512, 512, 12, True, 1, "segmented", bytes(range(32)))
KEY = bytes(range(0x64, 0x84))


# --- the other opener; section numbers are the document's ---


def hkdf(key: bytes, salt: bytes, info: bytes, n: int) -> bytes:
    prk, out, block = hmac.digest(salt, key, "sha256"), b"", b""
    while len(out) < n:
        block = hmac.digest(prk, block + info + bytes([len(out) // 32 + 1]), "sha256")
        out += block
    return out[:n]


def chacha(key: bytes, n: int) -> bytes:
    return Cipher(algorithms.ChaCha20(key, bytes(16)), None).encryptor().update(bytes(n))


def derive(data_key: bytes, context: bytes, info: str) -> bytes:
    """Section 1."""
    return hkdf(data_key, hashlib.sha256(context).digest(), b"palimpsest/" + info.encode(), 32)


def open_seal(sealed: bytes, data_key: bytes, context: bytes, info: str) -> bytes:
    """Section 3."""
    assert sealed[:32] == derive(data_key, context, "commit/v1/" + info)
    return AESGCM(derive(data_key, context, info)).decrypt(bytes(12), sealed[32:], context)


def open_record(sealed: bytes, data_key: bytes, context: bytes) -> bytes:
    """Section 4."""
    stream = chacha(derive(data_key, context, "whiten/v1"), len(sealed))
    inner = open_seal(bytes(a ^ b for a, b in zip(sealed, stream, strict=True)), data_key, context, "record/v1")
    size = int.from_bytes(inner[:2], "big")
    return inner[2 : 2 + size]


def read_record(packed: bytes, public: bytes, dictionary: bytes) -> dict[str, object]:
    """Section 5."""
    assert packed[0] == 1
    text = zlib.decompressobj(-15, dictionary).decompress(packed[65:])
    Ed25519PublicKey.from_public_bytes(public).verify(packed[1:65], b"palimpsest/record/v1\0" + text)
    fields = json.loads(text)
    assert isinstance(fields, dict)
    return fields


def unwrap(wrap: bytes, kek: bytes) -> bytes:
    """Section 6."""
    n = wrap[1]
    head = wrap[: 18 + n]
    both = hkdf(kek, hashlib.sha256(head).digest(), b"palimpsest/wrap/v1", 64)
    assert wrap[0] == 1 and wrap[18 + n : 50 + n] == both[32:]
    return AESGCM(both[:32]).decrypt(bytes(12), wrap[50 + n :], head)


def eligible(idx: NDArray[np.uint16], levels: list[int]) -> list[tuple[int, int]]:
    """Section 7."""
    found = []
    for y, x in np.ndindex(*idx.shape):
        pair = int(idx[y, x]) >> 1
        around = idx[max(y - 1, 0) : y + 2, max(x - 1, 0) : x + 2] >> 1
        inside = 0 < pair < (len(levels) - 1) >> 1
        if inside and (levels[2 * pair] < 0) == (levels[2 * pair + 1] < 0) and (around != pair).any():
            found.append((y, x))
    return found


def shuffled(n: int, key: bytes, salt: bytes) -> list[int]:
    """Section 7."""
    stream = chacha(hkdf(key, salt, b"palimpsest/pos/v1", 32), 8 * n + 64)
    words = iter(struct.unpack(f"<{len(stream) // 4}I", stream))
    perm = list(range(n))
    for i in range(n - 1, 0, -1):
        r = next(r for r in words if r < 2**32 - 2**32 % (i + 1))
        perm[i], perm[r % (i + 1)] = perm[r % (i + 1)], perm[i]
    return perm


# --- what it opens ---


def test_the_other_opener_reads_a_whole_object() -> None:
    rng = np.random.default_rng(8)
    fmt = PixelFormat(80, 90, 1, 16, 16, 15, True)
    cover = rng.normal(-3, 50, (80, 90)).astype(np.int16).view(np.uint16)
    values = split_words(cover, fmt)[0]
    levels = choose_levels(values)
    secret, kek, data_key = os.urandom(32), os.urandom(32), os.urandom(32)
    packed = record.pack_record(record.Record(patient_name="Doe^J\u00f6rg"), signing_key=("sign-1", secret))
    start, nbits = 17, 8 * seal.length_class(len(packed))
    untouched = segmented.untouched(cover, fmt, levels, start, nbits)
    context = seal.Context(os.urandom(16), 80, 90, 16, True, 1, "segmented", untouched)
    sealed = seal.seal_record(packed, data_key=data_key, context=context)
    stego_key = seal.derive(data_key, context, "pos/v1")
    done = segmented.embed(cover, fmt, levels, sealed, stego_key=stego_key, salt=context.object_id, start=start)
    wrap = seal.wrap_key(data_key, kek=kek, kek_id="kek-1")

    key, clear = unwrap(wrap, kek), context.aad()
    idx = levels.rank(split_words(done.words, fmt)[0])
    places = eligible(idx, levels.values().tolist())[start : start + nbits]
    segment = [int(idx[at]) & 1 for at in places]
    perm = shuffled(nbits, derive(key, clear, "pos/v1"), clear[22:38])
    message = np.packbits([segment[at] for at in perm]).tobytes()
    public = Ed25519PrivateKey.from_private_bytes(secret).public_key().public_bytes_raw()
    fields = read_record(open_record(message, key, clear), public, record.DICTIONARY)
    assert fields["patient_name"] == "Doe^J\u00f6rg" and fields["signer"] == "sign-1"

    flips = np.unpackbits(np.frombuffer(done.bitmap, np.uint8))
    for at, flip in zip(places, flips, strict=True):
        idx[at] ^= flip
    assert np.array_equal(levels.values()[idx], values)
    assert clear[52:84] == untouched_by_hand(done.words, places, levels, start, nbits)


def untouched_by_hand(
    words: NDArray[np.uint16], places: list[tuple[int, int]], levels: LevelTable, start: int, nbits: int
) -> bytes:
    kept, table = words.copy(), levels.values().tolist()
    for at in places:
        value = int(words[at].view(np.int16))
        kept[at] = np.uint16(table[table.index(value) & ~1] & 0xFFFF)
    head = b"palimpsest/untouched/v1\0" + struct.pack(">IIBBBBBQQ", 80, 90, 1, 16, 16, 15, 1, start, nbits)
    return hashlib.sha256(head + kept.astype("<u2").tobytes()).digest()


def test_the_documents_vectors_are_true() -> None:
    sealed = seal.seal_record(b"golden", data_key=KEY, context=CONTEXT)
    side = seal.seal_side(b"side", data_key=KEY, context=CONTEXT, label="nonpixel")
    perm = permutation(16, stego_key=bytes(range(32)), salt=bytes(16)).tolist()
    bitmap_key = derive(KEY, CONTEXT.aad(), "bitmap-key/v1")
    bitmap = seal.seal_bitmap(b"\xa5\xf0", bytes(32), key=seal.bitmap_key(KEY, CONTEXT), context=CONTEXT)
    capsule = seal_capsule(
        sealed, object_id=CONTEXT.object_id, wrap=b"wrap", stego_key=bytes(range(32)), salt=bytes(32)
    )
    for value in (
        seal.derive(KEY, CONTEXT, "record/v1").hex(),
        hashlib.sha256(sealed).hexdigest(),
        sealed[:24].hex(),
        side.hex(),
        " ".join(map(str, perm)),
        hashlib.sha256(record.DICTIONARY).hexdigest(),
        bitmap_key.hex(),
        hashlib.sha256(bitmap).hexdigest(),
        hashlib.sha256(capsule).hexdigest(),
    ):
        assert f"`{value}`" in DOCUMENT
    assert open_record(sealed, KEY, CONTEXT.aad()) == b"golden"
    assert open_seal(side, KEY, CONTEXT.aad(), "side/v1/nonpixel") == bytes(8) + b"\x04side"
    assert (
        open_seal(sealed=bitmap, data_key=bitmap_key, context=CONTEXT.aad(), info="bitmap/v1")
        == bytes(32) + b"\xa5\xf0"
    )


def test_the_documents_tables_are_true() -> None:
    rows = dict(re.findall(r"^\| `(\w+)` \| (\d+) \| ", DOCUMENT, re.M))
    assert {name: int(limit) for name, limit in rows.items()} == record.LIMITS
    assert ", ".join(map(str, seal.LENGTH_CLASSES)) in DOCUMENT
    assert f"at most {seal.MAX_RECORD_BYTES} bytes" in DOCUMENT
