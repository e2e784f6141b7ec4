"""An object in another lossless transfer syntax: the same UIDs and header, exactly the same pixels.

What a syntax forces changes and nothing else: transfer syntax and group lengths, the pixel data element, Planar
Configuration 0 where the coding goes by pixel, RGB instead of YBR_RCT where the colour transform was undone, no offset
tables of fragments that are no more.  Every frame is decoded again, where there is one by a decoder unrelated to its
encoder, and compared word for word before it is given; what would lose a bit is refused.  One frame is held at a time.
"""

from __future__ import annotations

import io
import mmap
import struct
import tempfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from hashlib import sha256
from itertools import chain
from typing import Final

from gateway.errors import InvalidInstance, Unsupported
from gateway.part10 import DEFLATED, EXPLICIT_LE, IMPLICIT_LE, PIXEL_TAGS, UNDEFINED, read_meta
from gateway.transfer_syntaxes import DEFLATED_LE, MADE, NATIVE
from worker.attributes import Data, DataSet, read_data_set, read_file_meta
from worker.framecoders import CODERS
from worker.pixels import MAX_NATIVE_BYTES, Layout, PixelSource, frame_bytes, open_pixels, pixel_pieces
from worker.reencode import Encoding, element_bytes, header_bytes, implied_vr, reencoded, source_encoding
from worker.splice import EXTENDED_OFFSETS, PIXEL_DATA, read_object

__all__ = ["TARGETS", "transcode", "write_transcoded"]

Write = Callable[[bytes | memoryview | mmap.mmap], object]

TARGETS: Final = frozenset(MADE)
PHOTOMETRIC, PLANAR, SIGN, ICON = 0x00280004, 0x00280006, 0x00280103, 0x00880200
ENCAPSULATED_ICON = struct.pack("<HH", PIXEL_DATA >> 16, PIXEL_DATA & 0xFFFF) + b"OB\0\0\xff\xff\xff\xff"
ITEM_HEADER, SEQUENCE_END = struct.Struct("<HHI"), struct.pack("<HHI", 0xFFFE, 0xE0DD, 0)
PIECE = 1 << 20
MAX_INFLATED = MAX_NATIVE_BYTES + (1 << 26)


def transcode(part10: bytes, syntax: str) -> bytes:
    """The object in `syntax`, one of TARGETS or its own. Arguments and errors as `write_transcoded`."""
    out = io.BytesIO()
    write_transcoded(part10, syntax, out.write)
    return out.getvalue()


def write_transcoded(part10: Data, syntax: str, write: Write) -> None:
    """Write the object piece by piece; good once this returns.

    Raises Unsupported ``not-transcodable`` (the message says why), InvalidInstance when the object cannot be read.
    """
    source, offset = read_meta(part10)
    if source == syntax:
        write(part10)  # type: ignore[arg-type]
        return
    if syntax not in TARGETS:
        raise Unsupported("not-transcodable", "not a transfer syntax that is made here")
    try:
        if source in DEFLATED:
            with _inflated(part10, source, offset) as mapped:
                write_transcoded(mapped, syntax, write)
        else:
            _write(part10, syntax, write)
    except Unsupported as error:
        if error.reason == "not-transcodable":
            raise
        raise Unsupported("not-transcodable", f"{error.message} ({error.reason})") from error


def _write(part10: Data, syntax: str, write: Write) -> None:
    dataset = read_data_set(part10)
    if PIXEL_DATA in dataset.repeated:
        raise Unsupported("not-transcodable", "more than one pixel data element")
    body = _native_body(dataset, syntax) if syntax in NATIVE else _encapsulated_body(dataset, syntax)
    write(_meta(dataset, syntax))
    if syntax == DEFLATED_LE:
        _deflate(body, write)
        return
    for piece in body:
        write(piece)


def _meta(dataset: DataSet, syntax: str) -> bytes:
    """Preamble and file meta information (PS3.10 7.1) with another transfer syntax."""
    data, elements = dataset.data, read_file_meta(dataset.data, dataset.offset)
    named = syntax.encode("ascii")
    group = bytearray()
    for tag, element in elements.items():
        if tag == 0x00020010:
            group += element_bytes(tag, "UI", named + b"\0" * (len(named) & 1), explicit=True)
        elif tag != 0x00020000:
            group += bytes(data[element.offset : element.end])
    return bytes(data[:132]) + element_bytes(0x00020000, "UL", struct.pack("<I", len(group)), explicit=True) + group


def _encoding(dataset: DataSet, *, explicit: bool) -> Encoding:
    implicit = not next((element.vr for element in dataset.elements.values()), "")
    signed = dataset.number(SIGN) == 1
    return Encoding(source_encoding(dataset.syntax), implicit, dataset.big, explicit, signed)


def _elements(
    dataset: DataSet, encoding: Encoding, changed: dict[int, bytes], pixels: Callable[[], Iterator[bytes | memoryview]]
) -> Iterator[bytes | memoryview]:
    """All elements in their order. changed: new values (empty: the element is left out); pixels: that of pixel data."""
    if dataset.repeated:
        raise Unsupported("not-transcodable", "an element is there twice")
    for tag, element in dataset.elements.items():
        if tag == PIXEL_DATA:
            yield from pixels()
        elif tag not in changed:
            yield from reencoded(dataset.data, element, encoding)
        elif changed[tag]:
            vr = element.vr or implied_vr(tag, False)
            yield element_bytes(tag, vr, changed[tag], explicit=encoding.explicit)


# --- native pixel data, or none ---


def _native_body(dataset: DataSet, syntax: str) -> Iterator[bytes | memoryview]:
    encoding = _encoding(dataset, explicit=syntax != IMPLICIT_LE)
    element = dataset.elements.get(PIXEL_DATA)
    if dataset.syntax not in NATIVE and PIXEL_TAGS & set(dataset.elements):
        return _decoded_body(dataset, encoding)
    if element is not None and element.undefined:
        raise Unsupported("not-transcodable", "the pixel data element contradicts the transfer syntax")

    def pixels() -> Iterator[bytes | memoryview]:
        assert element is not None
        if dataset.big:
            yield from _native_pixels(open_pixels(read_object(dataset.data)), element.vr, encoding)
            return
        vr = element.vr or "OW"
        yield header_bytes(PIXEL_DATA, vr, element.length, explicit=encoding.explicit)
        yield from _cut(memoryview(dataset.data)[element.value_offset : element.end])

    return _elements(dataset, encoding, {}, pixels)


def _decoded_body(dataset: DataSet, encoding: Encoding) -> Iterator[bytes | memoryview]:
    icon = dataset.elements.get(ICON)
    if icon is not None and ENCAPSULATED_ICON in bytes(dataset.data[icon.offset : icon.end]):
        raise Unsupported("not-transcodable", "the icon image is compressed, too")
    source = open_pixels(read_object(dataset.data), viewing=True)
    changed = dict.fromkeys(EXTENDED_OFFSETS, b"") | _colour(source)
    vr = "OW" if source.fmt.bits_allocated > 8 else "OB"
    return _elements(dataset, encoding, changed, lambda: _native_pixels(source, vr, encoding))


def _native_pixels(source: PixelSource, vr: str, encoding: Encoding) -> Iterator[bytes]:
    """The element of all samples, little endian, colour as Planar Configuration says, padded to an even length."""
    size = frame_bytes(source.fmt) * source.frames
    if size > UNDEFINED - 2:
        raise Unsupported("not-transcodable", "the native pixel data would not fit one element")
    layout = Layout(source.fmt.bits_allocated // 8, False, source.layout.planar, False)
    yield header_bytes(PIXEL_DATA, vr or "OW", size + (size & 1), explicit=encoding.explicit)
    yield from pixel_pieces(source, source.fmt, layout)
    if size & 1:
        yield b"\0"


# --- encapsulated pixel data ---


def _encapsulated_body(dataset: DataSet, syntax: str) -> Iterator[bytes | memoryview]:
    source = open_pixels(read_object(dataset.data), viewing=True)
    coder = CODERS[syntax]
    photometric = "RGB" if source.photometric == "YBR_RCT" else source.photometric
    coder.check(source.fmt, photometric)
    changed = dict.fromkeys(EXTENDED_OFFSETS, b"") | _colour(source)
    if coder.by_pixel and source.layout.planar:
        changed[PLANAR] = b"\0\0"

    def pixels() -> Iterator[bytes | memoryview]:
        yield header_bytes(PIXEL_DATA, "OB", UNDEFINED, explicit=True) + ITEM_HEADER.pack(0xFFFE, 0xE000, 0)
        for words in source:
            yield from _fragment(coder.encode_proven(words, source.fmt))
        yield SEQUENCE_END

    return _elements(dataset, _encoding(dataset, explicit=True), changed, pixels)


def _fragment(frame: bytes) -> Iterator[bytes]:
    """One frame as one fragment (PS3.5 A.4): an offset table would say nothing that the items do not."""
    yield ITEM_HEADER.pack(0xFFFE, 0xE000, len(frame) + (len(frame) & 1))
    yield frame
    if len(frame) & 1:
        yield b"\0"


def _colour(source: PixelSource) -> dict[int, bytes]:
    return {PHOTOMETRIC: b"RGB "} if source.photometric == "YBR_RCT" else {}


# --- deflated (PS3.5 A.5) ---


def _deflate(pieces: Iterable[bytes | memoryview], write: Write) -> None:
    """The data set deflated, inflated again as it goes, and compared by digest."""
    squeeze, inflate = zlib.compressobj(wbits=-zlib.MAX_WBITS), zlib.decompressobj(wbits=-zlib.MAX_WBITS)
    given, found, size = sha256(), sha256(), 0
    for piece in chain(pieces, (None,)):
        out = squeeze.flush() if piece is None else squeeze.compress(piece)
        given.update(piece or b"")
        found.update(inflate.decompress(out))
        size += len(out)
        write(out)
    write(b"\0" * (size & 1))
    if not inflate.eof or given.digest() != found.digest():
        raise Unsupported("not-transcodable", "the deflated data set does not inflate to itself")


@contextmanager
def _inflated(part10: Data, syntax: str, offset: int) -> Iterator[mmap.mmap]:
    """The same file with its data set inflated, as a mapped temporary file. Raises InvalidInstance, Unsupported."""
    inflate, size = zlib.decompressobj(wbits=-zlib.MAX_WBITS), 0
    view = memoryview(part10)
    with tempfile.TemporaryFile() as file:
        file.write(_meta(DataSet(part10, syntax, offset, False, {}, frozenset()), EXPLICIT_LE))
        for start in range(offset, len(view), PIECE):
            left: bytes | memoryview = view[start : start + PIECE]
            while left and not inflate.eof:
                try:
                    piece = inflate.decompress(left, PIECE)
                except zlib.error as error:
                    raise InvalidInstance("bad-deflate", "the deflated data set cannot be inflated") from error
                left, size = inflate.unconsumed_tail, size + len(piece)
                if size > MAX_INFLATED:
                    raise Unsupported("not-transcodable", "the data set is too long when inflated")
                file.write(piece)
        if not inflate.eof:
            raise InvalidInstance("bad-deflate", "the deflated data set ends too early")
        file.flush()
        yield mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)  # closed with the last view of it


def _cut(view: memoryview) -> Iterator[memoryview]:
    return (view[at : at + PIECE] for at in range(0, len(view), PIECE))
