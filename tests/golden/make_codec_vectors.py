"""Writes the golden vectors of the codec: `python -m tests.golden.make_codec_vectors`. Only for a new format version.

Each vector is a blob and, in manifest.json, the SHA-256 of the words it must decode to.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from unittest import mock

import numpy as np

from codec import plan
from codec.bitplane import LevelTable, Words, sign_extension
from codec.frame import V1_CODERS, encode_frame
from codec.pixelformat import PixelFormat
from tests.unit.codec_images import noise, picture, stored

CLASSES = ((1 << 62, (3,), 1),)  # so small a frame would not be given any
FOLDER = Path(__file__).parent / "codec_v1"


def frames() -> dict[str, tuple[Words, PixelFormat, dict[str, object]]]:
    """Name -> words, format, options of encode_frame."""
    out: dict[str, tuple[Words, PixelFormat, dict[str, object]]] = {}

    def add(name: str, fmt: PixelFormat, values: object, unused: object = None, **options: object) -> None:
        out[name] = (stored(values, fmt, unused), fmt, {"coders": ("dual",), **options})  # type: ignore[arg-type]

    grey = PixelFormat(48, 40, 1, 16, 12, 11, False)
    add("grey12", grey, picture(grey, 1, 6))
    add("grey12-tiles", grey, picture(grey, 2, 3), tile_samples=500)
    byte = PixelFormat(33, 45, 1, 8, 8, 7, False)
    add("grey8", byte, picture(byte, 3, 1))
    signed = PixelFormat(40, 40, 1, 16, 16, 15, True)
    add("signed16", signed, picture(signed, 4, 300))
    add("noisy16", signed, picture(signed, 5, 9000), levels=LevelTable(-32768, 65536))
    sparse = PixelFormat(40, 40, 1, 16, 14, 13, False)
    add("sparse-levels", sparse, picture(PixelFormat(40, 40, 1, 16, 9, 8, False), 6, 4) * np.int32(13))
    high = PixelFormat(30, 31, 1, 16, 10, 12, False)
    add("overlay-bits", high, picture(high, 7, 2), (noise(930, 8).reshape(30, 31) & 0xE007).astype(np.uint16))
    extended = PixelFormat(30, 30, 1, 16, 12, 11, True)
    values = picture(extended, 9, 2)
    add("sign-extended", extended, values, sign_extension(values, extended))
    colour = PixelFormat(24, 30, 3, 8, 8, 7, False)
    add("colour", colour, picture(colour, 10, 2))
    two = PixelFormat(50, 50, 1, 8, 1, 0, False)
    add("bitmap", two, (noise(2500, 11).reshape(50, 50) >> 9 > 90).astype(np.int32))
    classes = PixelFormat(40, 44, 1, 16, 12, 11, False)
    add("activity-classes", classes, picture(classes, 16, 20))
    split = PixelFormat(60, 60, 1, 8, 8, 7, False)
    ramp = np.where(np.indices((60, 60)).sum(axis=0) < 60, 3, 200).astype(np.int32)
    add("global-part", split, ramp + (noise(3600, 12).reshape(60, 60) & 7).astype(np.int32))
    tiny = PixelFormat(1, 1, 1, 16, 16, 15, False)
    add("one-sample", tiny, np.array([[77]], np.int32), levels=LevelTable(0, 4096))
    row = PixelFormat(1, 37, 1, 16, 12, 11, False)
    add("one-row", row, picture(row, 13, 5))
    column = PixelFormat(37, 1, 1, 16, 12, 11, False)
    add("one-column", column, picture(column, 14, 5))
    flat = PixelFormat(20, 20, 1, 16, 12, 11, True)
    add("constant", flat, np.full((20, 20), -5, np.int32))
    for coder in sorted(set(V1_CODERS) - {"dual"}):
        add(f"coder-{coder}", byte, picture(byte, 15, 2), coders=(coder,))
    return out


def main() -> None:
    """Write all vectors and the manifest."""
    FOLDER.mkdir(exist_ok=True)
    manifest = {}
    for name, (words, fmt, options) in frames().items():
        choices = CLASSES if name == "activity-classes" else plan.CLASS_CHOICES
        with mock.patch.object(plan, "CLASS_CHOICES", choices):
            coded = encode_frame(words, fmt, **options)  # type: ignore[arg-type]
        (FOLDER / f"{name}.bin").write_bytes(coded.blob)
        digest = hashlib.sha256(words.astype("<u2" if fmt.bits_allocated == 16 else "u1").tobytes()).hexdigest()
        manifest[name] = {"bytes": len(coded.blob), "sha256": digest, "coder": coded.coder, **coded.details}
    (FOLDER / "manifest.json").write_text(json.dumps(manifest, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
