"""Values inside a data set by their path: '7FE00010', or '54000100/1/54001010' for one in item 1 of a sequence."""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from typing import Final

from gateway.errors import NotFound
from gateway.part10 import EXPLICIT_BE, EXPLICIT_LE, IMPLICIT_LE, ITEM, ITEM_END, UNDEFINED, Buffer, Element, walk

__all__ = ["find_element", "item_elements"]

PATH: Final = re.compile(r"[0-9A-Fa-f]{8}(?:/[1-9][0-9]{0,5}/[0-9A-Fa-f]{8}){0,16}")


def find_element(data: Buffer, syntax: str, offset: int, path: str) -> Element:
    """The element of that path in the data set from `offset` on. Raises NotFound ``no-such-value``, InvalidInstance."""
    if PATH.fullmatch(path) is None:
        raise _nothing()
    steps = path.split("/")
    under = syntax if syntax in (IMPLICIT_LE, EXPLICIT_BE) else EXPLICIT_LE
    found = _tagged(walk(data, under, offset), steps[0])
    for number, tag in zip(steps[1::2], steps[2::2], strict=True):
        found = _tagged(item_elements(data, found, under, int(number)), tag)
    return found


def _tagged(elements: Iterator[Element], tag: str) -> Element:
    wanted = int(tag, 16)
    for element in elements:
        if element.tag == wanted:
            return element
    raise _nothing()


def item_elements(data: Buffer, sequence: Element, syntax: str, number: int) -> Iterator[Element]:
    """Elements of item `number` (from 1) of a sequence. Raises NotFound, InvalidInstance."""
    at, seen = sequence.value_offset, 0
    view = memoryview(data)
    while at + 8 <= sequence.end:
        group, element, length = struct.unpack_from(">HHI" if syntax == EXPLICIT_BE else "<HHI", data, at)
        if group << 16 | element != ITEM:
            break
        seen += 1
        start = at + 8
        inside = view[: sequence.end if length == UNDEFINED else min(sequence.end, start + length)]
        if seen == number:
            yield from _until_end(inside, syntax, start)
            return
        at = start + length if length != UNDEFINED else _end_of(inside, syntax, start)
    raise _nothing()


def _until_end(inside: memoryview, syntax: str, start: int) -> Iterator[Element]:
    for element in walk(inside, syntax, start):
        if element.tag == ITEM_END:
            return
        yield element


def _end_of(inside: memoryview, syntax: str, start: int) -> int:
    for element in walk(inside, syntax, start):
        if element.tag == ITEM_END:
            return element.end
    raise _nothing()


def _nothing() -> NotFound:
    return NotFound("no-such-value", "this instance has no value under that path")
