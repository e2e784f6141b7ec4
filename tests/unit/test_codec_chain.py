"""Chains of odd frames: every decoder gives the same words and the same memory, and damage never gives other ones."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import pytest

from codec import learnedplan
from codec.adapter import Adapter
from codec.bitplane import Words
from codec.blob import Frame
from codec.dual import code_taps
from codec.frame import EncodedFrame, decode_frame, encode_frame
from codec.groupread import member_of
from codec.learned import decode_upper
from codec.learneddecode import radius_of
from codec.learnedformat import CodedPlane, write_learned
from codec.memory import Memory, PlaneMemory
from codec.pixelformat import PixelFormat
from codec.weights import write_weights
from gateway.errors import IntegrityError
from tests.unit.codec_images import picture, stored
from tests.unit.codec_networks import FRAME_INPUTS, VOLUME_INPUTS, known, layers
from tests.unit.test_codec_learned import parsed
from worker.framechain import RUN, ChainCoder, FrameChain
from worker.opener.standards import FrameDecoder

FORMATS = (
    PixelFormat(19, 13, 1, 16, 12, 11, False), PixelFormat(7, 9, 3, 8, 8, 7, False),
    PixelFormat(1, 23, 1, 16, 16, 15, True), PixelFormat(35, 5, 1, 8, 7, 6, False),
)  # fmt: skip
PLAIN = FrameDecoder().decode
DECODERS = (decode_frame, partial(decode_frame, threads=2), PLAIN)


def adapter(previous: bool, seed: int) -> bytes:
    """One that changes every layer of a network, its last one too."""
    random, inputs = np.random.default_rng(seed), VOLUME_INPUTS if previous else FRAME_INPUTS
    shapes = ((16, inputs), (8, 16), (9, 24))
    factors = tuple(tuple(random.integers(-40, 41, size).astype(np.int8) for size in ((o, 1), (1, i)))
                    for o, i in shapes)  # fmt: skip
    return Adapter(previous, None, np.array([20, -9], np.int8), factors).pack()


SHARED = adapter(True, 1)


@pytest.fixture(autouse=True)
def odd(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Networks that know adapters, small tiles, and always the last adapter that is offered."""
    arrays = {}
    for name, inputs in (("frame", FRAME_INPUTS), ("volume", VOLUME_INPUTS)):
        arrays |= {f"{name}.{part}": array for part, array in layers(inputs, inputs).items()}
        arrays[f"{name}.basis"] = np.random.default_rng(inputs).integers(-99, 99, (2, 57)).astype(np.int8)
    monkeypatch.setattr(learnedplan, "tile_height", lambda rows, *_: min(rows, 16))
    monkeypatch.setattr(learnedplan, "choose_network", lambda _, __, networks, ___: len(networks) - 1)
    with known(write_weights("chain-test", ("fast", "default", "max"), arrays)):
        yield


@dataclass
class Chain:
    """What was coded: words and results in order."""

    words: list[Words]
    coded: list[EncodedFrame]

    def decoder(self, decode: Any = decode_frame, blobs: dict[int, bytes] | None = None) -> FrameChain:
        found = [(blobs or {}).get(at, each.blob) for at, each in enumerate(self.coded)]
        return FrameChain([memoryview(blob) for blob in found], decode, SHARED)


def chain(seed: int, count: int, formats: tuple[PixelFormat, ...] = FORMATS, *, plain: bool = False) -> Chain:
    """Frames that differ in size, kind, coder, profile, split and adapter, as the seed says; `plain`: in none."""
    random, coder, out = np.random.default_rng(seed), ChainCoder(), Chain([], [])
    fmt, base = formats[0], 0
    for _ in range(count):
        if random.random() < 0.2:
            fmt, base = formats[random.integers(len(formats))], int(random.integers(9))
        values = picture(fmt, base, 4) + random.integers(-2, 3, fmt.shape)
        flat = not plain and random.random() < 0.1
        lowest, highest = (-(1 << fmt.bits_stored - 1), (1 << fmt.bits_stored - 1) - 1) if fmt.signed else (
            0, (1 << fmt.bits_stored) - 1)  # fmt: skip
        words = stored(np.clip(np.full(fmt.shape, 3) if flat else values, lowest, highest).astype(np.int32), fmt)
        options: dict[str, Any] = {"coders": ("learned",), "shared": SHARED}
        if not plain:
            options["coders"] = ("raw",) if random.random() < 0.08 else ("learned",)
            options["shared"] = SHARED if random.random() < 0.5 else None
            options["profile"] = str(random.choice(["fast", "default", "max"]))
            options["split"] = [None, 0, 3][random.integers(3)]
            options["adapters"] = [adapter(bool(random.integers(2)), 5)] if random.random() < 0.4 else []
        before = coder.context(fmt)
        given: dict[str, Any] = {} if before is None else {"previous": before.words, "memory": before.memory}
        coded = encode_frame(words, fmt, **given, **options)
        coder.add(coded, words, fmt)
        out.words.append(words)
        out.coded.append(coded)
    return out


def crc(memory: Memory | None) -> int | None:
    return None if memory is None else memory.crc


def apart(blob: bytes) -> tuple[bytes, list[np.ndarray] | None]:
    """A blob with its global part elsewhere, and that; what has none stays as it is."""
    member = member_of(blob, stacked=False)
    if member is None:
        return blob, None
    upper = []
    for plane, shape in zip((each for each in member.frame.planes if each.top), member.shapes, strict=True):
        heights = [min(plane.tile_rows, shape.rows - first) for first in range(0, shape.rows, plane.tile_rows)]
        parts = zip(plane.tiles, heights, strict=True)
        upper.append(np.concatenate([decode_upper(tile.upper, rows, shape.columns, plane.top) for tile, rows in parts]))
    return member.head + write_learned(member.frame.without_upper()), upper


@pytest.mark.parametrize("seed", [3, 11])
def test_every_decoder_gives_the_same_words_and_memory(seed: int) -> None:
    made = chain(seed, 9)
    used = [each.details.get("memory", 0) for each in made.coded]
    assert sum(used) >= 2, used
    for decode in DECODERS:
        reader = made.decoder(decode)
        for at, (words, coded) in enumerate(zip(made.words, made.coded, strict=True)):
            frame = reader.frame(at)
            assert np.array_equal(frame.words, words)
            assert crc(frame.memory) == crc(coded.memory)


def test_a_global_part_elsewhere_leaves_the_same_memory() -> None:
    made, split = chain(4, 8), 0
    before: Frame | None = None
    for words, coded in zip(made.words, made.coded, strict=True):
        blob, upper = apart(coded.blob)
        split += upper is not None
        given: dict[str, Any] = {} if before is None else {"previous": before.words, "memory": before.memory}
        for decode in (decode_frame, PLAIN):
            before = decode(blob, upper=upper, shared=SHARED, **given)
            assert np.array_equal(before.words, words) and crc(before.memory) == crc(coded.memory)
    assert split >= 2


def with_own_taps(plane: CodedPlane, memory: PlaneMemory | None, previous: bool) -> CodedPlane:
    """A plane that inherits its predictors, sending the same ones itself."""
    assert memory is not None
    known_ones = memory.predictors
    words = code_taps(known_ones.taps, radius_of(previous)) if known_ones.taps.size else plane.taps
    thresholds = tuple(int(threshold) for threshold in known_ones.thresholds)
    return replace(plane, sets=known_ones.taps.shape[0], thresholds=thresholds, taps=words)


def test_a_frame_may_go_on_with_the_head_alone() -> None:
    made = chain(5, 4, FORMATS[:1], plain=True)
    assert made.coded[3].details["memory"]
    head, frame = parsed(made.coded[3].blob)
    memory = made.coded[2].memory
    assert memory is not None
    own = with_own_taps(frame.planes[0], memory.planes[0], memory.volume)
    blob = head + write_learned(replace(frame, planes=(own,)))
    for decode in (decode_frame, PLAIN):
        found = decode(blob, previous=made.words[2], memory=memory, shared=SHARED)
        assert np.array_equal(found.words, made.words[3]) and crc(found.memory) == crc(made.coded[3].memory)


def test_damage_in_a_chain_is_refused_and_ends_with_its_run() -> None:
    made = chain(6, RUN + 3, FORMATS[2:3], plain=True)
    blobs = [each.blob for each in made.coded]
    assert [bool(each.details["previous"] or each.details["memory"]) for each in (made.coded[0], made.coded[RUN])] == [
        False, False]  # fmt: skip
    spoilt = bytearray(blobs[4])
    spoilt[len(spoilt) // 2] ^= 8
    for broken in ({4: bytes(spoilt)}, {4: blobs[5], 5: blobs[4]}, {4: blobs[3]}, {4: b""}):
        reader, refused = made.decoder(blobs=broken), []
        for at in (5, 4, *range(RUN + 3), 9):
            meant = blobs.index(broken[at]) if broken.get(at) in blobs else at
            try:
                assert np.array_equal(reader.frame(at).words, made.words[meant])
            except IntegrityError as error:
                assert error.reason == "bitstream-damaged"
                refused.append(at)
        assert refused and min(refused) >= 4 and max(refused) < RUN
