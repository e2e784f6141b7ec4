"""Data sets for the de-identification tests: a telling value for every VR, and pydicom bytes in and out."""

from __future__ import annotations

import io
from typing import Any

from pydicom import dcmread
from pydicom.datadict import dictionary_has_tag, dictionary_VR
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.filewriter import dcmwrite

from tests.object_makers import EXPLICIT, header, save

KEY = bytes(range(32))
MARK = "QUASTENFLOSSER"
TELLING_UID = "1.2.826.0.1.3680043.8.498.77120771207712"
TELLING: dict[str, Any] = {
    "AE": MARK, "AS": "077Y", "CS": MARK, "DA": "20190817", "DS": "77120", "DT": "20190817131517", "IS": "77120",
    "TM": "131517", "UI": TELLING_UID, "UR": f"http://{MARK}", "PN": f"{MARK}^Wilhelmine", "US": 7712, "SS": 7712,
    "UV": 77120771, "SV": 77120771,
    "UL": 77120771, "SL": 77120771, "FL": 77120.0, "FD": 77120.0, "AT": 0x00100010, "OB": MARK.encode(),
    "OW": MARK.encode(), "OD": bytes(8), "OF": bytes(4), "OL": bytes(4), "OV": bytes(8), "UN": MARK.encode(),
}  # fmt: skip


def vr_of(tag: int) -> str:
    """One VR for a tag, UN where the dictionary knows none."""
    return str(dictionary_VR(tag)).split(" or ")[-1] if dictionary_has_tag(tag) else "UN"


def telling(tag: int, vr: str | None = None) -> DataElement:
    """The attribute with a value that must not come through; a sequence holds a name, a UID and a text."""
    vr = vr or vr_of(tag)
    if vr != "SQ":
        return DataElement(tag, vr, TELLING.get(vr, MARK))
    item = Dataset()
    item.PatientName, item.ReferencedSOPInstanceUID, item.ImageComments = TELLING["PN"], TELLING_UID, MARK
    return DataElement(tag, "SQ", [item])


def written(dataset: Dataset) -> bytes:
    """Part 10 bytes as pydicom writes this data set."""
    out = io.BytesIO()
    dcmwrite(out, dataset)
    return out.getvalue()


def reread(dataset: Dataset, syntax: str = EXPLICIT) -> Dataset:
    """The data set as a file gives it: every value unread."""
    return dcmread(io.BytesIO(save(dataset, syntax)))


def with_element(element: DataElement, **changes: object) -> Dataset:
    """A CT header with one more attribute, as read from a file."""
    ds = header(**changes)
    ds[element.tag] = element
    return reread(ds)
