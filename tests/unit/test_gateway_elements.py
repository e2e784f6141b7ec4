"""Values found by their path: one by one, and all in one pass."""

from __future__ import annotations

import pytest
from pydicom.dataset import Dataset
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_dataset
from pydicom.sequence import Sequence

from gateway import elements
from gateway.elements import find_element, find_elements
from gateway.errors import NotFound
from gateway.part10 import EXPLICIT_BE, EXPLICIT_LE, IMPLICIT_LE


def written(syntax: str, *, undefined: bool = False) -> bytes:
    """Two levels of sequences with 3 items each, each item with one value that says where it stands."""
    outer = Dataset()
    outer.InstitutionName = "top"
    outer.ReferencedSeriesSequence = Sequence([])
    for number in range(1, 4):
        item = Dataset()
        item.ReferencedImageSequence = Sequence([])
        for inner in range(1, 4):
            leaf = Dataset()
            leaf.TextComments = f"{number}.{inner}"
            leaf.is_undefined_length_sequence_item = undefined
            item.ReferencedImageSequence.append(leaf)
        item.TextComments = str(number)
        item.is_undefined_length_sequence_item = undefined
        outer.ReferencedSeriesSequence.append(item)
    outer["ReferencedSeriesSequence"].is_undefined_length = undefined
    target = DicomBytesIO()
    target.is_little_endian, target.is_implicit_VR = syntax != EXPLICIT_BE, syntax == IMPLICIT_LE
    write_dataset(target, outer)
    return target.getvalue()


PATHS = [
    "00080080",
    *(f"00081115/{n}/00081140/{m}/40004000" for n in (3, 1, 2) for m in (2, 3, 1)),
    *(f"00081115/{n}/40004000" for n in (2, 1, 3)),
    "00081115",
]


@pytest.mark.parametrize("undefined", [False, True])
@pytest.mark.parametrize("syntax", [EXPLICIT_LE, IMPLICIT_LE, EXPLICIT_BE])
def test_one_pass_finds_what_single_looks_find(syntax: str, undefined: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    data = written(syntax, undefined=undefined)
    assert find_element(data, syntax, 0, "00081115/3/00081140/2/40004000") is not None
    single = {path: find_element(data, syntax, 0, path) for path in PATHS}
    passes = []
    walk = elements.walk
    monkeypatch.setattr(elements, "walk", lambda buf, under, start: (passes.append(start), walk(buf, under, start))[1])
    found = list(find_elements(data, syntax, 0, [*PATHS, "00081115/9/40004000", "00104000"]))
    assert dict(found) == single and len(found) == len(PATHS)
    offsets = [element.value_offset for path, element in found if path != "00081115"]
    assert offsets == sorted(offsets)
    # the data set once, and each of the 12 items once for what is in it, once more for its end where that is not told
    assert len(passes) <= 1 + 12 * (2 if undefined else 1) and passes.count(0) == 1


def test_what_is_no_path_is_refused() -> None:
    with pytest.raises(NotFound):
        list(find_elements(written(EXPLICIT_LE), EXPLICIT_LE, 0, ["00080080", "../etc/passwd"]))
