"""Writes golden vectors of the learned coder that are not there yet: `python -m tests.golden.make_codec2_vectors`.

Each vector is a blob and, in manifest.json, the SHA-256 of the words that it must decode to; some need the words of a
previous frame (`NAME.previous`, little-endian) or planes of G (`NAME.upper`, int32, little-endian), some another vector
(`after` in the manifest), whose words and memory are those of the frame before. `weights.bin` is a weight file of small
random networks: the law has to hold for any. What is there is frozen and stays as it is.
"""

from __future__ import annotations

import hashlib
import json
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from unittest import mock

import numpy as np
from numpy.typing import NDArray

from codec import learnedplan
from codec.bitplane import LevelTable, Words
from codec.blob import Frame
from codec.frame import encode_frame
from codec.header import read_header
from codec.learned import decode_upper
from codec.learnedformat import read_learned, write_learned
from codec.limits import DEFAULT_LIMITS
from codec.pixelformat import PixelFormat
from codec.wire import Reader
from tests.unit.codec_images import noise, picture, stored
from tests.unit.codec_networks import known

FOLDER = Path(__file__).parent / "codec_v2"


@dataclass
class Vector:
    """What a vector is made from; `stacked`: its global part is left to a group's stack; `after`: see above.

    `choices`: what stands for names of codec.learnedplan, where so small a frame would not get what is to be shown.
    """

    words: Words
    fmt: PixelFormat
    previous: Words | None = None
    after: str = ""
    stacked: bool = False
    options: dict[str, object] = field(default_factory=dict)
    choices: dict[str, object] = field(default_factory=dict)


def split_frame(fmt: PixelFormat) -> Words:
    """A frame whose upper planes are nearly free."""
    steps = np.where(np.indices(fmt.shape).sum(axis=0) < fmt.rows, 3, 200).astype(np.int32)
    return stored(steps + (noise(fmt.rows * fmt.columns, 12).reshape(fmt.shape) & 7).astype(np.int32), fmt)


def vectors() -> dict[str, Vector]:
    """Name -> what the vector is made from."""
    out: dict[str, Vector] = {}
    grey = PixelFormat(48, 40, 1, 16, 12, 11, False)
    out["grey12"] = Vector(stored(picture(grey, 1, 6), grey), grey)
    byte = PixelFormat(33, 45, 1, 8, 8, 7, False)
    out["grey8"] = Vector(stored(picture(byte, 3, 1), byte), byte)
    signed = PixelFormat(40, 40, 1, 16, 16, 15, True)
    out["signed16"] = Vector(stored(picture(signed, 4, 300), signed), signed)
    wide = {"levels": LevelTable(-32768, 65536)}
    out["noisy16"] = Vector(stored(picture(signed, 5, 9000), signed), signed, options=wide)
    sparse = PixelFormat(40, 40, 1, 16, 14, 13, False)
    values = picture(PixelFormat(40, 40, 1, 16, 9, 8, False), 6, 4) * np.int32(13)
    out["sparse-levels"] = Vector(stored(values, sparse), sparse)
    out["sparse-previous"] = Vector(stored(values, sparse), sparse, stored(values + np.int32(5), sparse))
    colour = PixelFormat(24, 30, 3, 8, 8, 7, False)
    picture_words = stored(picture(colour, 10, 2), colour)
    out["colour"] = Vector(picture_words, colour)
    out["colour-previous"] = Vector(picture_words, colour, stored(picture(colour, 10, 2) ^ np.int32(1), colour))
    classes = PixelFormat(40, 44, 1, 16, 12, 11, False)
    shown = stored(picture(classes, 16, 20), classes)
    for name, sets, precision in (("activity-classes", (4, 1), 2), ("directions", (5, 3), 0)):
        choices: dict[str, object] = {"CLASS_CHOICES": ((1 << 62, (sets,), precision),)}
        out[name] = Vector(shown, classes, choices=choices)
    out["sixteen-states"] = Vector(shown, classes, choices={"STATE_LOSS": 1.0})
    out["fast-learning"] = Vector(
        shown, classes, choices={"choose_rate": lambda _, setting, __: replace(setting, rate=7)}
    )
    out["no-learning"] = Vector(shown, classes, options={"profile": "fast"})
    tall = PixelFormat(300, 450, 1, 16, 10, 9, False)
    out["two-tiles"] = Vector(stored(picture(tall, 17, 2), tall), tall, options={"profile": "fast"})
    half = PixelFormat(60, 60, 1, 8, 8, 7, False)
    out["global-part"] = Vector(split_frame(half), half)
    out["global-part-elsewhere"] = Vector(split_frame(half), half, stacked=True)
    later = stored(picture(grey, 1, 6) + np.int32(1), grey)
    out["previous"] = Vector(later, grey, stored(picture(grey, 1, 6), grey))
    tiny = PixelFormat(1, 1, 1, 16, 16, 15, False)
    out["one-sample"] = Vector(np.array([[77]], np.uint16), tiny, options={"levels": LevelTable(0, 4096)})
    for name, rows, columns in (("one-row", 1, 37), ("one-column", 37, 1), ("narrow", 50, 3)):
        fmt = PixelFormat(rows, columns, 1, 16, 12, 11, False)
        out[name] = Vector(stored(picture(fmt, 13, 5), fmt), fmt)
    flat = PixelFormat(20, 20, 1, 16, 12, 11, True)
    out["constant"] = Vector(stored(np.full((20, 20), -5, np.int32), flat), flat)
    return out | chains()


def chains() -> dict[str, Vector]:
    """Frames that go on from the one before: alike, so that it is context, too; unlike; in colour; of two tiles."""
    out: dict[str, Vector] = {}
    grey = PixelFormat(24, 20, 1, 16, 12, 11, False)
    for number in range(3):
        grain = noise(24 * 20, 50 + number).reshape(24, 20) % 5
        words = stored(picture(grey, 20, 6) + grain.astype(np.int32), grey)
        out[f"chain-{number}"] = Vector(words, grey, after=f"chain-{number - 1}" if number else "")
    grey = PixelFormat(40, 36, 1, 16, 12, 11, False)
    for number in range(2):
        values = picture(grey, 31, 6)[::-1, ::-1].copy() if number else picture(grey, 30, 6)
        out[f"chain-unlike-{number}"] = Vector(stored(values, grey), grey, after="chain-unlike-0" if number else "")
    colour, tall = PixelFormat(14, 12, 3, 8, 8, 7, False), PixelFormat(40, 12, 1, 8, 8, 7, False)
    for kind, fmt, choices in (("colour", colour, {}), ("tiles", tall, {"tile_height": lambda *_: 16})):
        for number in range(3):
            words, after = stored(picture(fmt, 40 + number, 3), fmt), f"chain-{kind}-{number - 1}" if number else ""
            out[f"chain-{kind}-{number}"] = Vector(words, fmt, after=after, choices=choices)
    return out


def digest(words: Words) -> str:
    """SHA-256 of words, little-endian."""
    return hashlib.sha256(words.astype(words.dtype.newbyteorder("<")).tobytes()).hexdigest()


def stack(blob: bytes) -> tuple[bytes, NDArray[np.int32]]:
    """A blob of one plane without its global part, and that."""
    reader = Reader(blob)
    header = read_header(reader, DEFAULT_LIMITS)
    head = blob[: reader.position]
    frame = read_learned(reader, header.fmt.shape, header.levels.count)
    plane = frame.planes[0]
    upper = decode_upper(plane.tiles[0].upper, header.fmt.rows, header.fmt.columns, plane.top)
    return head + write_learned(frame.without_upper()), upper


def main() -> None:
    """Write all vectors and the manifest."""
    frozen = json.loads((FOLDER / "manifest.json").read_text())
    manifest, frames = dict(frozen), dict[str, Frame]()
    with known((FOLDER / "weights.bin").read_bytes()):
        for name, vector in vectors().items():
            if name in frozen:
                continue
            before = frames.get(vector.after)
            with ExitStack() as changes:
                for choice, value in vector.choices.items():
                    changes.enter_context(mock.patch.object(learnedplan, choice, value))
                options: dict[str, object] = {"coders": ("learned",), "previous": vector.previous, **vector.options}
                if before is not None:
                    options |= {"previous": before.words, "memory": before.memory}
                coded = encode_frame(vector.words, vector.fmt, **options)  # type: ignore[arg-type]
            blob = coded.blob
            frames[name] = Frame(vector.words, vector.fmt, LevelTable(0, 1), coded.memory)
            if vector.previous is not None:
                little = vector.previous.astype(vector.previous.dtype.newbyteorder("<"))
                (FOLDER / f"{name}.previous").write_bytes(little.tobytes())
            if vector.stacked:
                blob, upper = stack(blob)
                (FOLDER / f"{name}.upper").write_bytes(upper.astype("<i4").tobytes())
            (FOLDER / f"{name}.bin").write_bytes(blob)
            manifest[name] = {"bytes": len(blob), "sha256": digest(vector.words), **coded.details}
            if vector.after:
                manifest[name]["after"] = vector.after
    (FOLDER / "manifest.json").write_text(json.dumps(manifest, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
