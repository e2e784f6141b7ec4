"""Frozen bitstreams: both decoders must give the frozen pixels, in this release and in every later one."""

from __future__ import annotations

import hashlib
import json
import zlib
from pathlib import Path

import numpy as np
import pytest

from codec import tables
from codec.frame import decode_frame
from codec.reference import decode_frame_reference
from tests.golden.make_codec_vectors import frames

FOLDER = Path(__file__).parent / "codec_v1"
MANIFEST = json.loads((FOLDER / "manifest.json").read_text())


def _digest(words: np.ndarray) -> str:
    return hashlib.sha256(words.astype(words.dtype.newbyteorder("<")).tobytes()).hexdigest()


@pytest.mark.parametrize("name", sorted(MANIFEST))
def test_fast_decoder_gives_the_frozen_words(name: str) -> None:
    blob = (FOLDER / f"{name}.bin").read_bytes()
    assert len(blob) == MANIFEST[name]["bytes"]
    assert _digest(decode_frame(blob).words) == MANIFEST[name]["sha256"]


@pytest.mark.parametrize("name", sorted(MANIFEST))
def test_reference_decoder_gives_the_frozen_words(name: str) -> None:
    blob = (FOLDER / f"{name}.bin").read_bytes()
    assert _digest(decode_frame_reference(blob).words) == MANIFEST[name]["sha256"]


def test_frozen_words_are_the_generated_ones() -> None:
    generated = {name: _digest(words) for name, (words, _, _) in frames().items()}
    assert generated == {name: entry["sha256"] for name, entry in MANIFEST.items()}


# CRC-32 of each table as little-endian int64: other tables are another bitstream version
TABLE_CRCS = {
    "LOG2": 0x13D2B138,
    "WEIGHT": 0x73822F17,
    "LOGISTIC": 0xBB49E67C,
    "INVERSE_SCALE": 0x10653615,
    "FIRST_ERROR": 0x2FE7AF74,
}
FORMULAS = {
    "LOG2": tables.real_log2,
    "WEIGHT": tables.real_weight,
    "LOGISTIC": tables.real_logistic,
    "INVERSE_SCALE": tables.real_inverse_scale,
    "FIRST_ERROR": tables.real_first_error,
}


@pytest.mark.parametrize("name", sorted(TABLE_CRCS))
def test_tables_are_frozen(name: str) -> None:
    table = getattr(tables, name)
    assert zlib.crc32(table.astype("<i8").tobytes()) == TABLE_CRCS[name]


@pytest.mark.parametrize("name", sorted(FORMULAS))
def test_no_table_entry_is_near_a_rounding_border(name: str) -> None:
    table = getattr(tables, name)
    entries = table[:-1] if name == "WEIGHT" else table
    for place, entry in enumerate(entries):
        real = FORMULAS[name](place)
        assert abs(real - int(entry)) < 0.5 - 1e-5, (place, real)  # doubles are good to about 1e-7 here
