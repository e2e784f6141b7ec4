"""Decoding of frames, whatever coded them: the plain reference decoders, and for standard codecs what is at hand.

JPEG-LS (ISO/IEC 14495-1) has a plain decoder here. JPEG XL (ISO/IEC 18181) and HTJ2K (ISO/IEC 15444-15) have none:
tried are a program that the caller names, then imagecodecs and Pillow if they can be imported; else the frame is
refused, and the refusal says what is needed. The codestream is a bare one of the open standard.
"""

from __future__ import annotations

import importlib
import io
import shlex
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from codec.bitplane import Words, join_words
from codec.blob import Frame
from codec.errors import CodecError, CorruptBitstream
from codec.header import Header, read_header
from codec.limits import DEFAULT_LIMITS
from codec.memory import Memory
from codec.reference import decode_frame_reference
from codec.wire import Reader
from worker.jpegls_t87 import JpegLSError
from worker.jpegls_t87 import decode as decode_jpegls
from worker.opener.errors import Damaged, NeedsLibrary

SUFFIX = {"jxl": ".jxl", "htj2k": ".j2c"}
NAMED = {"jxl": "JPEG XL (ISO/IEC 18181)", "htj2k": "HTJ2K (ISO/IEC 15444-15)"}


@dataclass(frozen=True)
class FrameDecoder:
    """Decodes blobs. programs: coder -> command line with {in} and {out}, which writes a binary PGM or PPM file."""

    programs: Mapping[str, str] = field(default_factory=dict)

    def decode(
        self,
        blob: bytes,
        *,
        previous: Words | None = None,
        memory: Memory | None = None,
        shared: bytes | None = None,
        upper: Sequence[NDArray[np.int32]] | None = None,
    ) -> Frame:
        """One frame, given the words and memory of the frame before, the shared adapter, planes of G from a stack.

        Raises Damaged, NeedsLibrary.
        """
        try:
            reader = Reader(blob)
            header = read_header(reader, DEFAULT_LIMITS)
            if header.coder not in ("jxl", "htj2k", "jpegls"):
                return decode_frame_reference(blob, previous=previous, memory=memory, shared=shared, upper=upper)
            start = reader.position
            body = bytes(reader.take(reader.left - 4))
            reader.check_crc(start, "coded frame")
            index = self._plane(header, body)
            values = header.levels.value(index)
        except CodecError as error:
            raise Damaged(f"a frame cannot be decoded: {error}") from error
        return Frame(join_words(values, header.unused_bits(values), header.fmt), header.fmt, header.levels)

    def _plane(self, header: Header, body: bytes) -> NDArray[np.uint16]:
        shape = header.fmt.shape
        plane = _jpegls(body) if header.coder == "jpegls" else self._by_others(header.coder, body)
        if plane.size != int(np.prod(shape)):
            raise CorruptBitstream("a standard codec's frame has another size than the header says")
        return plane.reshape(shape).astype(np.uint16)

    def _by_others(self, coder: str, body: bytes) -> NDArray[Any]:
        if coder in self.programs:
            return _by_program(self.programs[coder], coder, body)
        for attempt in (_by_imagecodecs, _by_pillow):
            found = attempt(coder, body)
            if found is not None:
                return found
        raise NeedsLibrary(
            f"a frame is coded in {NAMED[coder]}, for which there is no plain decoder here: make the Python package "
            f"imagecodecs importable, or name a program: --program '{coder}=PROGRAM {{in}} {{out}}', which reads "
            f"{SUFFIX[coder]} and writes PGM or PPM"
        )


def _jpegls(body: bytes) -> NDArray[np.uint16]:
    try:
        return decode_jpegls(body)
    except JpegLSError as error:
        raise CorruptBitstream("a JPEG-LS frame is damaged") from error


def _by_imagecodecs(coder: str, body: bytes) -> NDArray[Any] | None:
    try:
        library = importlib.import_module("imagecodecs")
    except ImportError:
        return None
    try:
        found = {"jxl": "jpegxl_decode", "htj2k": "htj2k_decode"}[coder]
        return np.asarray(getattr(library, found)(body))
    except (RuntimeError, ValueError) as error:
        raise CorruptBitstream(f"a frame in {NAMED[coder]} is damaged") from error


def _by_pillow(coder: str, body: bytes) -> NDArray[Any] | None:
    try:
        if coder == "jxl":
            importlib.import_module("pillow_jxl")
        library = importlib.import_module("PIL.Image")
    except ImportError:
        return None
    try:
        with library.open(io.BytesIO(body)) as image:
            return np.asarray(image)
    except (OSError, ValueError, SyntaxError):
        return None


def _by_program(command: str, coder: str, body: bytes) -> NDArray[Any]:
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder, "frame" + SUFFIX[coder]), Path(folder, "frame.ppm")
        source.write_bytes(body)
        line = [part.replace("{in}", str(source)).replace("{out}", str(target)) for part in shlex.split(command)]
        done = subprocess.run(line, capture_output=True, check=False)
        if done.returncode or not target.is_file():
            raise NeedsLibrary(f"the program named for {NAMED[coder]} did not write an image")
        return read_netpbm(target.read_bytes())


def read_netpbm(data: bytes) -> NDArray[np.uint16]:
    """Samples of a binary PGM (P5) or PPM (P6) file as uint16, (rows, columns[, 3]). Raises Damaged."""
    fields, at = [], 0
    while len(fields) < 4 and at < len(data):
        end = at
        while end < len(data) and data[end : end + 1] not in (b" ", b"\n", b"\t", b"\r"):
            end += 1
        if data[at : at + 1] == b"#":
            end = data.find(b"\n", at)
        elif end > at:
            fields.append(data[at:end])
        at = end + 1
    if len(fields) < 4 or fields[0] not in (b"P5", b"P6") or not all(each.isdigit() for each in fields[1:]):
        raise Damaged("no binary PGM or PPM file")
    columns, rows, highest = (int(each) for each in fields[1:])
    samples = 3 if fields[0] == b"P6" else 1
    count, dtype = rows * columns * samples, ">u2" if highest > 255 else "u1"
    if len(data) - at < count * np.dtype(dtype).itemsize:
        raise Damaged("a PGM or PPM file is cut off")
    plane = np.frombuffer(data, dtype, count, at).astype(np.uint16)
    return plane.reshape((rows, columns, 3) if samples == 3 else (rows, columns))
