"""Which waiting files of a series may become one archive object, and in which order their frames are coded.

Read from the files' own headers: the index may not have been there yet.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from gateway.errors import Unsupported
from worker.attributes import Data, DataSet, read_tolerant
from worker.sealing import patient_label

PATIENT_ID, STUDY, SERIES, INSTANCE_NUMBER = 0x00100020, 0x0020000D, 0x0020000E, 0x00200013
POSITION, ORIENTATION, FRAMES = 0x00200032, 0x00200037, 0x00280008
# samples, rows, columns, bits allocated and stored, high bit, sign: frames of another format are no context
FORMAT = (0x00280002, 0x00280010, 0x00280011, 0x00280100, 0x00280101, 0x00280102, 0x00280103)
LEAST_NUMBER = -(1 << 31)  # of an IS: scanners count from 0, and below
SAME_PLACE = 1e-3  # mm: slices nearer than this lie in one place


@dataclass(frozen=True)
class Slice:
    """One single-frame image. kind: only slices of one kind share an object (patient, series, format).

    number: Instance Number (0020,0013). position, normal: Image Position (Patient) and the normal of its orientation,
    mm, None where they are not stated.
    """

    kind: tuple[object, ...]
    number: int
    position: tuple[float, ...] | None
    normal: tuple[float, ...] | None

    @property
    def samples(self) -> int:
        """Of its frame: samples per pixel, rows, columns, which stand in `kind` after patient, study and series."""
        return math.prod(part for part in self.kind[3:6] if isinstance(part, int))


def slice_of(data: Data) -> Slice | None:
    """A file as a slice; None for what has several frames, or no header to tell."""
    header = read_tolerant(data)
    if header is None:
        return None
    try:
        shape = [header.number(tag) for tag in FORMAT]
        if header.integer_string(FRAMES, 1) != 1 or None in shape[:4]:
            return None
        number = header.integer_string(INSTANCE_NUMBER, 0, LEAST_NUMBER)
    except Unsupported:
        return None
    study, series = header.ascii(STUDY), header.ascii(SERIES)
    if not study or not series:
        return None
    patient = patient_label(header.text(PATIENT_ID), study)
    orientation = _decimals(header, ORIENTATION, 6)
    normal = None if orientation is None else _cross(orientation[:3], orientation[3:])
    return Slice((patient, study, series, *shape), number, _decimals(header, POSITION, 3), normal)


def coding_order(slices: Sequence[Slice]) -> list[int]:
    """Indices of the slices in the order in which they are coded: neighbours in space, else by Instance Number.

    By space only where all are parallel and no two in one place: phases of one volume are better left in their order.
    """
    places = _places(slices)
    if places is None:
        return sorted(range(len(slices)), key=lambda at: (slices[at].number, at))
    order = sorted(range(len(slices)), key=lambda at: (places[at], at))
    return order[::-1] if slices[order[0]].number > slices[order[-1]].number else order  # as a viewer asks for them


def _places(slices: Sequence[Slice]) -> list[float] | None:
    """Distance of each slice along the common normal, mm."""
    normal = slices[0].normal
    if normal is None or any(each.normal is None or math.dist(each.normal, normal) > SAME_PLACE for each in slices):
        return None
    places = [sum(a * b for a, b in zip(each.position or (), normal, strict=False)) for each in slices]
    ordered = sorted(places)
    close = any(after - before < SAME_PLACE for before, after in zip(ordered, ordered[1:], strict=False))
    return None if close or any(each.position is None for each in slices) else places


def _decimals(header: DataSet, tag: int, count: int) -> tuple[float, ...] | None:
    parts = (header.raw(tag) or b"").decode("ascii", "replace").split("\\")
    try:
        values = tuple(float(part.strip("\0 ")) for part in parts)
    except ValueError:
        return None
    return values if len(values) == count and all(map(math.isfinite, values)) else None


def _cross(row: Sequence[float], column: Sequence[float]) -> tuple[float, ...]:
    return (
        row[1] * column[2] - row[2] * column[1],
        row[2] * column[0] - row[0] * column[2],
        row[0] * column[1] - row[1] * column[0],
    )
