"""An object under its corrections: other values in some header elements, all else byte for byte as it was.

PS3.3 C.12.1.1.9: the Original Attributes Sequence among the new elements says what stood there. Values are written in
the file's own character set where it can hold them; else the header, and nothing but the header, becomes UTF-8.
"""

from __future__ import annotations

import mmap
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from io import BytesIO
from typing import Any, Final

import pydicom
from pydicom.charset import convert_encodings
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_data_element, write_dataset

from gateway.errors import Unsupported
from gateway.part10 import DEFLATED, EXPLICIT_BE, EXPLICIT_LE, PIXEL_TAGS, Element, read_meta, walk
from worker.restore import Write
from worker.transcode import write_transcoded

__all__ = ["write_corrected"]

CHARSET: Final = 0x00080005
UTF8: Final = "ISO_IR 192"
#: What pydicom raises for a header that it cannot read or write.
_ODD: Final = (ArithmeticError, AttributeError, LookupError, NotImplementedError, TypeError, ValueError)


def write_corrected(part10: bytes | mmap.mmap, elements: Mapping[str, Any], write: Write) -> None:
    """Write the object with these elements (DICOM JSON) in place of its own; good once this returns.

    Raises InvalidInstance when the object cannot be walked, Unsupported ``not-correctable`` when its header cannot be
    written in a character set that holds the new values.
    """
    syntax, start = read_meta(part10)
    if syntax in DEFLATED:
        _deflated(part10, syntax, elements, write)
        return
    view = memoryview(part10)
    try:
        _write(view, list(walk(part10, syntax, start)), start, syntax == EXPLICIT_BE, elements, write)
    finally:
        view.release()


def _deflated(part10: bytes | mmap.mmap, syntax: str, elements: Mapping[str, Any], write: Write) -> None:
    with tempfile.TemporaryFile() as plain, tempfile.TemporaryFile() as corrected:
        write_transcoded(part10, EXPLICIT_LE, plain.write)
        plain.flush()
        with mmap.mmap(plain.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
            write_corrected(mapped, elements, corrected.write)
        corrected.flush()
        with mmap.mmap(corrected.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
            write_transcoded(mapped, syntax, write)


def _write(
    view: memoryview, found: list[Element], start: int, big: bool, elements: Mapping[str, Any], write: Write
) -> None:
    implicit = bool(found) and not found[0].vr
    charset = next((_text(view, each) for each in found if each.tag == CHARSET), "")
    new = {int(tag, 16): element for tag, element in elements.items()}
    try:
        pieces = _spliced(view, found, _encoded(new, charset, implicit, big))
    except (UserWarning, UnicodeError, LookupError):
        pieces = _rewritten(view, found, start, new, implicit, big)
    write(view[:start])
    for piece in pieces:
        write(piece)


def _encoded(new: Mapping[int, Any], charset: str, implicit: bool, big: bool) -> dict[int, bytes]:
    """The elements as they stand in a file. Raises UserWarning, UnicodeError, LookupError if the set has no such
    letters.
    """
    encodings = convert_encodings(charset.split("\\") if charset else "")
    done: dict[int, bytes] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.filterwarnings("error", message="Failed to encode")  # else it writes question marks
        for element in _dataset(new):
            out = _buffer(implicit, big)
            write_data_element(out, element, encodings)
            done[int(element.tag)] = out.getvalue()
    return done


def _dataset(new: Mapping[int, Any]) -> Dataset:
    return Dataset.from_json({f"{tag:08X}": element for tag, element in new.items()})


def _spliced(view: memoryview, found: list[Element], new: dict[int, bytes]) -> Iterator[bytes | memoryview]:
    """Elements in their order, old ones as they are. Lengths of groups that change are dropped: they are retired
    (PS3.5 7.2) and would be wrong.
    """
    waiting = sorted(new)
    groups = {tag >> 16 for tag in new}
    for each in found:
        while waiting and waiting[0] < each.tag:
            yield new[waiting.pop(0)]
        if waiting and waiting[0] == each.tag:
            yield new[waiting.pop(0)]
        elif each.tag not in new and not (each.tag & 0xFFFF == 0 and each.tag >> 16 in groups):
            yield view[each.offset : each.end]
    for tag in waiting:
        yield new[tag]


def _rewritten(
    view: memoryview, found: list[Element], start: int, new: Mapping[int, Any], implicit: bool, big: bool
) -> Iterator[bytes | memoryview]:
    """The header written anew in UTF-8, pixel data and what follows as they are."""
    end = next((each.offset for each in found if each.tag in PIXEL_TAGS), found[-1].end if found else start)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            header = pydicom.dcmread(BytesIO(bytes(view[:end])), force=True)
            header.decode()
            header.walk(_in_utf8)
            header.SpecificCharacterSet = UTF8
            header.update(_dataset(new))
            out = _buffer(implicit, big)
            plain = Dataset()
            for element in header:
                if element.tag.element != 0:
                    plain.add(element)
            plain.set_original_encoding(implicit, not big, None)
            write_dataset(out, plain)
    except _ODD as error:
        raise Unsupported(
            "not-correctable", f"the header cannot be written in UTF-8 ({type(error).__name__})"
        ) from error
    yield out.getvalue()
    yield view[end:]


def _in_utf8(dataset: Dataset, element: DataElement) -> None:
    if element.tag == CHARSET:
        del dataset[element.tag]


def _buffer(implicit: bool, big: bool) -> DicomBytesIO:
    out = DicomBytesIO()
    out.is_little_endian, out.is_implicit_VR = not big, implicit
    return out


def _text(view: memoryview, element: Element) -> str:
    return bytes(view[element.value_offset : element.end]).decode("ascii", "replace").strip("\0 ")
