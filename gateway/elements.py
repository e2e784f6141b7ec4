"""Values inside a data set by their path: '7FE00010', or '54000100/1/54001010' for one in item 1 of a sequence."""

from __future__ import annotations

import re
import struct
from collections.abc import Iterable, Iterator
from typing import Final

from gateway.errors import NotFound
from gateway.part10 import EXPLICIT_BE, EXPLICIT_LE, IMPLICIT_LE, ITEM, ITEM_END, UNDEFINED, Buffer, Element, walk

__all__ = ["find_element", "find_elements", "item_elements"]

PATH: Final = re.compile(r"[0-9A-Fa-f]{8}(?:/[1-9][0-9]{0,5}/[0-9A-Fa-f]{8}){0,16}")


#: tag -> (number of the item -> what is wanted in it, paths that end here)
_Wanted = dict[int, tuple[dict[int, "_Wanted"], list[str]]]


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
    for seen, start, inside in _items(data, sequence, syntax):
        if seen == number:
            yield from _until_end(inside, syntax, start)
            return
    raise _nothing()


def find_elements(data: Buffer, syntax: str, offset: int, paths: Iterable[str]) -> Iterator[tuple[str, Element]]:
    """(path, element) of those paths that are there, in the order of the file, in one pass over it.

    Raises NotFound for what is no path, InvalidInstance.
    """
    wanted: _Wanted = {}
    for path in paths:
        if PATH.fullmatch(path) is None:
            raise _nothing()
        steps, level = path.split("/"), wanted
        for tag, number in zip(steps[:-1:2], steps[1::2], strict=True):
            level = level.setdefault(int(tag, 16), ({}, []))[0].setdefault(int(number), {})
        level.setdefault(int(steps[-1], 16), ({}, []))[1].append(path)
    under = syntax if syntax in (IMPLICIT_LE, EXPLICIT_BE) else EXPLICIT_LE
    yield from _matching(data, walk(data, under, offset), under, wanted)


def _matching(data: Buffer, elements: Iterator[Element], syntax: str, wanted: _Wanted) -> Iterator[tuple[str, Element]]:
    for element in elements:
        items, whole = wanted.get(element.tag, ({}, []))
        yield from ((path, element) for path in whole)
        if not items:
            continue
        for number, start, inside in _items(data, element, syntax):
            if number in items:
                yield from _matching(data, _until_end(inside, syntax, start), syntax, items[number])


def _items(data: Buffer, sequence: Element, syntax: str) -> Iterator[tuple[int, int, memoryview]]:
    """(number from 1, offset of its first element, the data up to its end or the sequence's) of each item."""
    at, seen = sequence.value_offset, 0
    view = memoryview(data)
    while at + 8 <= sequence.end:
        group, element, length = struct.unpack_from(">HHI" if syntax == EXPLICIT_BE else "<HHI", data, at)
        if group << 16 | element != ITEM:
            return
        seen += 1
        start = at + 8
        inside = view[: sequence.end if length == UNDEFINED else min(sequence.end, start + length)]
        yield seen, start, inside
        at = start + length if length != UNDEFINED else _end_of(inside, syntax, start)


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
