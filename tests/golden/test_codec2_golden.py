"""Frozen bitstreams of the learned coder: both decoders must give the frozen pixels, in every later release too."""

from __future__ import annotations

import json
from collections.abc import Iterator

import numpy as np
import pytest

from codec.frame import decode_frame
from codec.reference import decode_frame_reference
from tests.golden.make_codec2_vectors import FOLDER, digest, vectors
from tests.unit.codec_networks import known

MANIFEST = json.loads((FOLDER / "manifest.json").read_text())


@pytest.fixture(autouse=True, scope="module")
def _weights() -> Iterator[None]:
    with known((FOLDER / "weights.bin").read_bytes()):
        yield


def context(name: str) -> dict[str, object]:
    """What a vector needs beside its blob."""
    vector, out = vectors()[name], dict[str, object]()
    if vector.after:
        blob = (FOLDER / f"{vector.after}.bin").read_bytes()
        before = decode_frame(blob, **context(vector.after))  # type: ignore[arg-type]
        return {"previous": before.words, "memory": before.memory}
    if (FOLDER / f"{name}.previous").exists():
        raw = np.frombuffer((FOLDER / f"{name}.previous").read_bytes(), np.dtype(vector.fmt.dtype).newbyteorder("<"))
        out["previous"] = raw.astype(vector.fmt.dtype).reshape(vector.fmt.shape)
    if (FOLDER / f"{name}.upper").exists():
        planes = np.frombuffer((FOLDER / f"{name}.upper").read_bytes(), "<i4").astype(np.int32)
        out["upper"] = [planes.reshape(vector.fmt.shape)]
    return out


@pytest.mark.parametrize("name", sorted(MANIFEST))
@pytest.mark.parametrize("threads", [1, 2])
def test_fast_decoder_gives_the_frozen_words(name: str, threads: int) -> None:
    blob = (FOLDER / f"{name}.bin").read_bytes()
    assert len(blob) == MANIFEST[name]["bytes"]
    frame = decode_frame(blob, threads=threads, **context(name))  # type: ignore[arg-type]
    assert digest(frame.words) == MANIFEST[name]["sha256"]


@pytest.mark.parametrize("name", sorted(set(MANIFEST) - {"two-tiles"}))
def test_reference_decoder_gives_the_frozen_words(name: str) -> None:
    frame = decode_frame_reference((FOLDER / f"{name}.bin").read_bytes(), **context(name))  # type: ignore[arg-type]
    assert digest(frame.words) == MANIFEST[name]["sha256"]


def test_frozen_words_are_the_generated_ones() -> None:
    generated = {name: digest(vector.words) for name, vector in vectors().items()}
    assert generated == {name: entry["sha256"] for name, entry in MANIFEST.items()}


def test_the_chains_go_on_in_every_way() -> None:
    ways = {name: (entry["previous"], entry["memory"]) for name, entry in MANIFEST.items() if "after" in entry}
    assert ways["chain-1"] == (1, 0) and ways["chain-2"] == (1, 1) and ways["chain-unlike-1"] == (0, 1)
    assert ways["chain-colour-1"][1] and ways["chain-tiles-2"][1] and MANIFEST["chain-tiles-2"]["tiles"] == 3
