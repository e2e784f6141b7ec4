"""The JP2 wrapper (Annex I), as far as needed to find the codestream and to notice what would change its samples."""

from __future__ import annotations

from collections.abc import Iterator

from worker.jpeg2000_t800.errors import J2kCorrupt, J2kUnsupported

__all__ = ["codestream_of"]

SIGNATURE = bytes.fromhex("0000000c6a5020200d0a870a")  # I.5.1
#: Boxes inside jp2h that make the samples of the image something else than the samples of the codestream (I.5.3).
REMAPPING = {b"pclr": "palette", b"cmap": "component-mapping"}


def _boxes(data: bytes, start: int, end: int) -> Iterator[tuple[bytes, int, int]]:
    """(type, start, end) of the contents of each box in [start, end) (I.4)."""
    while start < end:
        if end - start < 8:
            raise J2kCorrupt("box-header", "the file ends inside a box header")
        length = int.from_bytes(data[start : start + 4], "big")
        kind, header = data[start + 4 : start + 8], 8
        if length == 1:
            length, header = int.from_bytes(data[start + 8 : start + 16], "big"), 16
        elif length == 0:
            length = end - start
        if length < header or length > end - start:
            raise J2kCorrupt("box-length", "a box is longer than what holds it")
        yield kind, start + header, start + length
        start += length


def codestream_of(data: bytes) -> bytes:
    """The contiguous codestream in `data`, which is one already or is a JP2 file; J2kCorrupt, J2kUnsupported."""
    if not data.startswith(SIGNATURE):
        return data
    for kind, start, end in _boxes(data, 0, len(data)):
        if kind == b"jp2h":
            for inner, _, _ in _boxes(data, start, end):
                if inner in REMAPPING:
                    raise J2kUnsupported(REMAPPING[inner], "the JP2 header maps samples to other values")
        elif kind == b"jp2c":
            return data[start:end]
    raise J2kCorrupt("no-codestream", "a JP2 file without a codestream box")
