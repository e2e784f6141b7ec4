"""Frames of NIfTI-1, NIfTI-2 and PNG files, for measuring the codec: nothing of these files is ever archived.

NIfTI: https://nifti.nimh.nih.gov/nifti-1 (nifti1.h) and nifti2.h; single files (`.nii`, `.nii.gz`) of integer types of
up to 16 bits, and RGB24. A frame is one slice, first axis along the columns: (dim[2], dim[1]), slices of the third and
higher axes one after another. Scaling and orientation are no part of the stored samples. PNG: ISO/IEC 15948, grey and
RGB of 8 and 16 bits without alpha; the file's header is read here, before libpng allocates what it declares.
"""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np

from codec.bitplane import Words
from codec.errors import UnsupportedFrame
from codec.limits import DEFAULT_LIMITS
from codec.pixelformat import PixelFormat
from gateway.errors import InvalidInstance, Unsupported
from worker.pixels import MAX_NATIVE_BYTES, frame_bytes

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
GZIP_SIGNATURE = b"\x1f\x8b"
SUFFIXES = (".nii", ".nii.gz", ".png")
SIZE_1, SIZE_2 = 348, 540  # bytes of a NIfTI-1 and a NIfTI-2 header, and its first field
MAX_FRAMES = 1 << 20
MAX_OFFSET = 1 << 24  # bytes before the samples: the header and its extensions
MAX_PNG_BYTES = 1 << 30
#: NIfTI datatype -> (bits allocated, signed, samples)
TYPES = {2: (8, False, 1), 256: (8, True, 1), 4: (16, True, 1), 512: (16, False, 1), 128: (8, False, 3)}
PNG_SAMPLES = {0: 1, 2: 3}  # PNG colour type -> samples


@dataclass(frozen=True)
class ImageFile:
    """Like worker.pixels.PixelSource without a DICOM object around it. frame(i): stored words of frame i.

    frame raises InvalidInstance when the file ends or contradicts itself; frames are cheapest in order.
    """

    fmt: PixelFormat
    frames: int
    frame: Callable[[int], Words]


def is_image_file(path: Path) -> bool:
    """Whether the name is one of a NIfTI or PNG file."""
    return path.name.lower().endswith(SUFFIXES)


@contextmanager
def open_image(path: Path, *, grey_rgb: bool = False) -> Iterator[ImageFile]:
    """Open a NIfTI or PNG file by its first bytes. `grey_rgb`: colour whose three samples are all equal is grey.

    Raises InvalidInstance (broken, unreadable) and Unsupported (a kind that is not coded). Inflates no more than what
    the header declares, which is bounded by MAX_NATIVE_BYTES, and of a volume holds one frame at a time.
    """
    try:
        file = path.open("rb")
    except OSError as error:
        raise InvalidInstance("unreadable-file", f"the file cannot be read ({type(error).__name__})") from None
    with file:
        head = file.read(len(PNG_SIGNATURE))
        file.seek(0)
        if head == PNG_SIGNATURE:
            yield _open_png(file.read(MAX_PNG_BYTES), grey_rgb)
        elif head.startswith(GZIP_SIGNATURE):
            with gzip.GzipFile(fileobj=file) as inflated:
                yield _open_nifti(cast("BinaryIO", inflated))
        else:
            yield _open_nifti(file)


def _format(rows: int, columns: int, samples: int, bits: int, *, signed: bool = False) -> PixelFormat:
    """Raises Unsupported for sizes that no frame has here."""
    try:
        fmt = PixelFormat(rows, columns, samples, bits, bits, bits - 1, signed)
    except UnsupportedFrame as error:
        raise Unsupported("pixel-format", str(error)) from error
    if rows * columns * samples > DEFAULT_LIMITS.max_samples:
        raise Unsupported("too-large", "more samples in a frame than are coded")
    return fmt


# --- PNG ---


def _open_png(data: bytes, grey_rgb: bool) -> ImageFile:
    if len(data) < 33 or data[8:16] != b"\x00\x00\x00\x0dIHDR":
        raise InvalidInstance("png", "the PNG file has no header")
    columns, rows, bits, colour = struct.unpack_from(">IIBB", data, 16)
    if colour not in PNG_SAMPLES or bits not in (8, 16):
        raise Unsupported("png-kind", "only grey and RGB PNG files of 8 and 16 bits without alpha are read")
    fmt = _format(rows, columns, PNG_SAMPLES[colour], bits)
    words = _decode_png(data, fmt)
    if grey_rgb and fmt.samples == 3 and bool((words == words[..., :1]).all()):
        fmt = _format(rows, columns, 1, bits)
        words = cast("Words", np.ascontiguousarray(words[..., 0]))
    return ImageFile(fmt, 1, lambda index: words)


def _decode_png(data: bytes, fmt: PixelFormat) -> Words:
    import imagecodecs

    try:
        words = imagecodecs.png_decode(data)
    except (RuntimeError, ValueError) as error:
        raise InvalidInstance("png", "the PNG file is damaged") from error
    if words.shape != fmt.shape or words.dtype != np.dtype(fmt.dtype):  # tRNS and sBIT make libpng decide otherwise
        raise Unsupported("png-kind", "the PNG file is not of the kind that its header says")
    return cast("Words", words)


# --- NIfTI ---


@dataclass(frozen=True)
class _Volume:
    """What a NIfTI header says. order: '<' or '>'; offset: bytes before the samples."""

    order: str
    fmt: PixelFormat
    frames: int
    offset: int


def _open_nifti(file: BinaryIO) -> ImageFile:
    volume = _read_header(_read(file, 0, SIZE_2))
    step = frame_bytes(volume.fmt)
    dtype = np.dtype(f"{volume.order}u{volume.fmt.bits_allocated // 8}")

    def frame(index: int) -> Words:
        data = _read(file, volume.offset + index * step, step)
        if len(data) != step:
            raise InvalidInstance("nifti", "the NIfTI file is shorter than its header says")
        return np.frombuffer(data, dtype).astype(volume.fmt.dtype).reshape(volume.fmt.shape)

    return ImageFile(volume.fmt, volume.frames, frame)


def _read(file: BinaryIO, start: int, length: int) -> bytes:
    """Up to `length` bytes from `start` on; a compressed file is inflated on the way, and anew to go back."""
    try:
        file.seek(start)
        return file.read(length)
    except (OSError, EOFError, zlib.error) as error:
        raise InvalidInstance("nifti", "the NIfTI file is damaged") from error


def _read_header(head: bytes) -> _Volume:
    """Raises InvalidInstance on what is no NIfTI header, Unsupported on what is one of another kind."""
    order = next((o for o in "<>" if head[:4] in (struct.pack(f"{o}i", n) for n in (SIZE_1, SIZE_2))), "")
    size = struct.unpack_from(f"{order}i", head)[0] if order else 0
    if not size or len(head) < size:
        raise InvalidInstance("nifti", "this is neither a NIfTI nor a PNG file")
    if size == SIZE_1:
        dims = struct.unpack_from(f"{order}8h", head, 40)
        kind, offset = struct.unpack_from(f"{order}h", head, 70)[0], struct.unpack_from(f"{order}f", head, 108)[0]
        magic, single = head[344:348], b"n+1\x00"
    else:
        dims = struct.unpack_from(f"{order}8q", head, 16)
        kind, offset = struct.unpack_from(f"{order}h", head, 12)[0], struct.unpack_from(f"{order}q", head, 168)[0]
        magic, single = head[4:12], b"n+2\x00\r\n\x1a\n"
    if magic != single:
        raise Unsupported("nifti-pair", "only NIfTI files that hold header and samples together are read")
    if kind not in TYPES:
        raise Unsupported("nifti-type", "only integer samples of up to 16 bits, and RGB24, are read")
    if not 2 <= dims[0] <= 7 or min(dims[1 : dims[0] + 1]) < 1:
        raise InvalidInstance("nifti", "the NIfTI header declares impossible dimensions")
    if not math.isfinite(offset) or not size <= offset <= MAX_OFFSET or offset != int(offset):
        raise InvalidInstance("nifti", "the NIfTI header declares an impossible offset of the samples")
    bits, signed, samples = TYPES[kind]
    fmt = _format(dims[2], dims[1], samples, bits, signed=signed)
    frames = math.prod(dims[3 : dims[0] + 1])
    if frames > MAX_FRAMES or frame_bytes(fmt) * frames > MAX_NATIVE_BYTES:
        raise Unsupported("too-large", "more sample bytes than are measured at once")
    return _Volume(order, fmt, frames, int(offset))
