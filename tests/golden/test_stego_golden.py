"""Stego images and objects written by earlier versions give back message, image and file, for ever."""

from __future__ import annotations

import hmac
import io
import json
import lzma
import struct
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from numpy.typing import NDArray

from gateway.errors import IntegrityError
from stego import hidden, selfcontained
from stego.cover import Cover
from stego.errors import SealError
from tests.golden.make_stego_vectors import StegoRing, digest, keys_of, table_digest
from tests.object_makers import IDENTITY
from tests.unit import selfcontained_reader
from tests.unit.test_stego_hidden_format import read as read_hidden
from worker.stegoobject import open_stego

FOLDER = Path(__file__).parent / "stego"
EXPECTED: dict[str, dict[str, Any]] = json.loads((FOLDER / "expected.json").read_text(encoding="ascii"))


def names(start: str) -> list[str]:
    return sorted(name for name in EXPECTED if name.startswith(start))


def stored(name: str) -> bytes:
    return lzma.decompress((FOLDER / f"{name}.xz").read_bytes())


def frame(name: str) -> NDArray[np.int32]:
    values = np.frombuffer(stored(name), "<i2").astype(np.int32).reshape(EXPECTED[name]["shape"])
    if EXPECTED[name]["low"] == 0:
        values &= 0xFFFF
    assert digest(values) == EXPECTED[name]["stego_sha256"]
    return values


def region(name: str) -> NDArray[np.bool_] | None:
    columns = EXPECTED[name].get("region_columns")
    if columns is None:
        return None
    mask = np.zeros(EXPECTED[name]["shape"], np.bool_)
    mask[:, :columns] = True
    return mask


def test_every_vector_is_tested() -> None:
    files = {path.name.removesuffix(".xz").removesuffix("-restoration") for path in FOLDER.glob("*.xz")}
    assert files | set(names("tables-")) == set(EXPECTED)
    kinds = {name.rsplit("-", 1)[0] for name in EXPECTED}
    assert {"object-inline", "object-archived", "object-hidden", "tables"} <= kinds
    for start in ("self-contained-recursive-", "self-contained-plain_pee-", "hidden-"):
        assert len(names(start)) >= 3


@pytest.mark.parametrize("name", names("self-contained-"))
def test_self_contained_frames_restore(name: str) -> None:
    want = EXPECTED[name]
    key, salt, _ = keys_of(name)
    cover = Cover(frame(name), want["low"], want["high"], tuple(want["barred"]))
    message, original = selfcontained.extract(cover, stego_key=key, salt=salt, region=region(name))
    assert message.hex() == want["message"]
    assert digest(original) == want["original_sha256"]
    with pytest.raises(SealError):
        selfcontained.extract(cover, stego_key=salt, salt=salt, region=region(name))


@pytest.mark.parametrize("name", names("self-contained-"))
def test_self_contained_frames_are_read_by_the_description(name: str) -> None:
    want, mask = EXPECTED[name], region(name)
    key, salt, _ = keys_of(name)
    message, original = selfcontained_reader.read(
        frame(name).tolist(), want["low"], want["high"], want["barred"], key, salt,
        None if mask is None else mask.tolist(),
    )  # fmt: skip
    assert message.hex() == want["message"]
    assert digest(np.array(original, np.int32)) == want["original_sha256"]


@pytest.mark.parametrize("name", names("hidden-"))
def test_hidden_frames_restore(name: str) -> None:
    want = EXPECTED[name]
    key, salt, _ = keys_of(name)
    message = bytes.fromhex(want["message"])
    assert hidden.extract(frame(name), len(message), stego_key=key, salt=salt) == message
    assert digest(hidden.restore(frame(name), bytes.fromhex(want["changes"]))) == want["original_sha256"]


@pytest.mark.parametrize("name", names("hidden-"))
def test_hidden_frames_are_read_by_the_description(name: str) -> None:
    key, salt, _ = keys_of(name)
    message = bytes.fromhex(EXPECTED[name]["message"])
    assert read_hidden(frame(name), len(message), key, salt) == message


@pytest.mark.parametrize("name", [name for name in names("object-") if EXPECTED[name]["mode"] == "self-contained"])
def test_stego_objects_are_read_by_the_description(name: str) -> None:
    """docs/payload-format.md, sections 8, 9 and 12, from pixels, header and the published key: the capsule."""
    ds, ring = pydicom.dcmread(io.BytesIO(stored(name))), StegoRing()
    values = ds.pixel_array.astype(np.int32)
    low = -(1 << (ds.BitsStored - 1)) if ds.PixelRepresentation else 0
    high = low + (1 << ds.BitsStored) - 1
    lattice = values[2::4, 2::4]
    head = struct.pack(">IIBBB", *values.shape, ds.BitsStored, ds.PixelRepresentation, 14) + b"self-contained"
    salt = sha256(b"palimpsest/lattice/v1\0" + head + lattice.astype("<i4").tobytes()).digest()
    key = selfcontained_reader.hkdf(ring.stego, salt, "palimpsest/pixel/v1/self-contained", 32)
    barred = {value for value in (int(lattice.min()), int(lattice.max()))
              if np.count_nonzero(lattice == value) >= max(8, lattice.size // 200)}  # fmt: skip
    barred |= {int(ds.PixelPaddingValue)} if "PixelPaddingValue" in ds else set()
    while low in barred:
        low += 1
    while high in barred:
        high -= 1
    inside = {value for value in barred if low < value < high}
    capsule, original = selfcontained_reader.read(values.tolist(), low, high, inside, key, salt)
    tag_key = selfcontained_reader.hkdf(key, salt, "palimpsest/capsule/tag/v1", 32)
    assert len(capsule) in (768, 1024, 1280, 2304)
    inner = _opened(capsule, key, salt)
    assert hmac.new(tag_key, inner, "sha256").digest() == capsule[:32]
    assert inner[:16].hex() == EXPECTED[name]["object_id"]
    archived = FOLDER / f"{name}-restoration.xz"
    restoration = lzma.decompress(archived.read_bytes()) if archived.exists() else None
    back = open_stego(stored(name), ring, restoration=restoration)  # type: ignore[arg-type]
    assert np.array_equal(pydicom.dcmread(io.BytesIO(back.data)).pixel_array, np.array(original))


def _opened(capsule: bytes, key: bytes, salt: bytes) -> bytes:
    info = b"palimpsest/capsule/whiten/v1" + capsule[:32]
    stream = selfcontained_reader.chacha(HKDF(SHA256(), 32, salt, info).derive(key), len(capsule) - 32)
    return bytes(a ^ b for a, b in zip(capsule[32:], stream, strict=True))


@pytest.mark.parametrize("name", names("object-"))
def test_stego_objects_restore(name: str) -> None:
    want, data, ring = EXPECTED[name], stored(name), StegoRing()
    assert sha256(data).hexdigest() == want["stego_sha256"]
    archived = FOLDER / f"{name}-restoration.xz"
    restoration = lzma.decompress(archived.read_bytes()) if archived.exists() else None
    back = open_stego(data, ring, restoration=restoration)  # type: ignore[arg-type]
    assert back.exact
    assert sha256(back.data).hexdigest() == back.sha256 == want["file_sha256"]
    assert (back.mode, back.object_id.hex(), back.pixel_sha256) == (
        want["mode"], want["object_id"], want["pixel_sha256"],
    )  # fmt: skip
    assert back.record.patient_name == IDENTITY["PatientName"]
    assert IDENTITY["PatientName"].encode() in back.data
    assert IDENTITY["PatientName"].encode() not in data
    with pytest.raises(IntegrityError):
        open_stego(data, StegoRing(stego=bytes(32)), restoration=restoration)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", names("tables-"))
def test_tables_are_the_frozen_ones(name: str) -> None:
    assert table_digest() == EXPECTED[name]["sha256"]
