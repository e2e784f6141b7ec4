"""Groups of frames whose global parts share a stack: both sides counted, pixels without the payload's help."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from codec import weights as weightfiles
from codec.errors import CorruptBitstream, MissingContext, UnsupportedFrame
from codec.frame import decode_frame, encode_frame
from codec.group import EncodedGroup, decode_group, encode_group, open_stack, stack_group
from codec.pixelformat import PixelFormat
from tests.unit.codec_images import picture, stored
from tests.unit.codec_networks import known, weight_file
from tests.unit.test_codec_vae import random_weights

PAYLOAD = b"sealed: " + bytes(range(256)) * 4


@pytest.fixture
def networks() -> Iterator[None]:
    """Random networks of both kinds, known to the process."""
    own = weightfiles.add(random_weights(5, 2))
    with known(weight_file()):
        yield
    weightfiles.drop(own)


def frames_of(count: int, samples: int = 1) -> tuple[list[Any], PixelFormat]:
    """A few different frames."""
    fmt = PixelFormat(40, 52, samples, 16, 12, 11, False)
    return [stored(picture(fmt, seed, 9), fmt) for seed in range(count)], fmt


def stacked(monkeypatch: pytest.MonkeyPatch, samples: int = 1) -> tuple[EncodedGroup, list[Any]]:
    """A group whose stack is kept whatever it costs."""
    frames, fmt = frames_of(3, samples)
    blobs = [encode_frame(words, fmt, coders=["learned"], split=3).blob for words in frames]
    monkeypatch.setattr("codec.group._worth", lambda gains, grown: list(gains))
    group = stack_group(blobs, payload=PAYLOAD, seed=1, weights=weightfiles.load("vae-test-5"))
    return group, frames


@pytest.mark.parametrize("samples", [1, 3])
def test_frames_and_payload_come_back(networks: None, monkeypatch: pytest.MonkeyPatch, samples: int) -> None:
    monkeypatch.setattr("codec.group.shorter", lambda stacked, causal: True)
    group, frames = stacked(monkeypatch, samples)
    assert group.report.chosen == "stack" and group.report.carried > 0
    decoded, initial = decode_group(group.blobs, group.stack)
    assert all(np.array_equal(frame.words, words) for frame, words in zip(decoded, frames, strict=True))
    carried = group.report.carried
    assert initial[:carried] + group.beside == PAYLOAD and group.report.saved == carried
    total = sum(map(len, group.blobs)) + len(group.stack) + len(group.beside)
    assert total == group.report.stacked
    with pytest.raises(MissingContext):
        decode_frame(group.blobs[0])
    with pytest.raises(MissingContext):
        decode_group(group.blobs, b"")
    with pytest.raises(CorruptBitstream):
        decode_group(group.blobs[:2], group.stack)
    uppers, _ = open_stack(group.blobs, group.stack)
    assert np.array_equal(decode_frame(group.blobs[1], upper=uppers[1]).words, frames[1])


def test_the_shorter_side_is_kept_and_both_are_reported(networks: None, monkeypatch: pytest.MonkeyPatch) -> None:
    group, frames = stacked(monkeypatch)
    report = group.report
    assert report.stacked is not None and report.chosen == ("stack" if report.stacked < report.causal else "causal")
    assert min(report.causal, report.stacked) == sum(map(len, (*group.blobs, group.stack, group.beside)))
    decoded, _ = decode_group(group.blobs, group.stack)
    assert all(np.array_equal(frame.words, words) for frame, words in zip(decoded, frames, strict=True))


def test_frames_without_a_global_part_stay_as_they_are() -> None:
    frames, fmt = frames_of(2)
    group = encode_group(frames, fmt, payload=PAYLOAD, coders=["jpegls", "dual"])
    assert group.stack == b"" and group.beside == PAYLOAD and group.report.stacked is None
    assert group.report.causal == sum(map(len, group.blobs)) + len(PAYLOAD)
    decoded, initial = decode_group(group.blobs, b"")
    assert initial == b"" and np.array_equal(decoded[1].words, frames[1])


def test_more_than_sixteen_frames_are_refused() -> None:
    with pytest.raises(UnsupportedFrame):
        stack_group([b""] * 17)
    with pytest.raises(CorruptBitstream):
        open_stack([b""] * 17, b"")


def test_damaged_groups_are_refused(networks: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("codec.group.shorter", lambda stacked, causal: True)
    group, _ = stacked(monkeypatch)
    for place in range(0, len(group.stack), 29):
        changed = bytearray(group.stack)
        changed[place] ^= 1 << place % 8
        with pytest.raises(CorruptBitstream):
            open_stack(group.blobs, bytes(changed))
    for place in range(0, len(group.blobs[1]), 41):
        blob = bytearray(group.blobs[1])
        blob[place] ^= 1 << place % 8
        with pytest.raises(CorruptBitstream):
            decode_group((group.blobs[0], bytes(blob), group.blobs[2]), group.stack)
    with pytest.raises(CorruptBitstream):  # another order: other frames' G, under the same sides
        decode_group(group.blobs[::-1], group.stack)


def test_a_stack_that_names_weights_of_another_kind_is_refused(networks: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("codec.group.shorter", lambda stacked, causal: True)
    group, _ = stacked(monkeypatch)
    monkeypatch.setattr("codec.groupstack._checksum", lambda data, shapes: group.stack[-4:])
    with known(weight_file(9)) as other, pytest.raises(CorruptBitstream, match="no VAE"):
        open_stack(group.blobs, group.stack[:2] + other.id + group.stack[6:])
