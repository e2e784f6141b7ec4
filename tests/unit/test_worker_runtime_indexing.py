"""Attributes and DICOM JSON metadata of good and odd files."""

from __future__ import annotations

import json
import math
from io import BytesIO
from pathlib import Path

import pytest
from pydicom import dcmread
from pydicom.data import get_charset_files, get_testdata_file
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian

from worker.indexing import describe, metadata_of

PREAMBLE = bytes(128) + b"DICM"
KNOWN = {"SOPInstanceUID": "1.2.3", "StudyInstanceUID": "1.2.4", "SeriesInstanceUID": ""}


def part10(dataset: Dataset) -> bytes:
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.SOPClassUID = "1.2.840.10008.5.1.4.1.1.7"
    dataset.SOPInstanceUID = "1.2.3"
    file = BytesIO()
    dataset.save_as(file, enforce_file_format=True)
    return file.getvalue()


def test_attributes_of_a_ct() -> None:
    path = Path(str(get_testdata_file("CT_small.dcm", download=False)))
    described = describe(path, {})
    assert described.complete
    assert described.attributes["Modality"] == "CT"
    assert described.attributes["PatientName"] == "CompressedSamples^CT1"
    assert (described.attributes["Rows"], described.attributes["Columns"]) == (128, 128)
    assert isinstance(described.attributes["SeriesNumber"], int)


def test_metadata_has_every_element_and_refers_to_bulk_data() -> None:
    path = Path(str(get_testdata_file("CT_small.dcm", download=False)))
    metadata = json.loads(describe(path, {}).metadata_json)
    assert metadata["7FE00010"] == {"vr": "OW", "BulkDataURI": "bulkdata/7FE00010"}
    assert metadata["00100010"]["Value"] == [{"Alphabetic": "CompressedSamples^CT1"}]
    again = Dataset.from_json(metadata)
    assert again.Rows == 128
    assert list(metadata) == sorted(metadata)


def test_what_the_door_read_wins_and_empty_identifiers_are_left_out() -> None:
    path = Path(str(get_testdata_file("CT_small.dcm", download=False)))
    described = describe(path, KNOWN)
    metadata = json.loads(described.metadata_json)
    assert described.attributes["StudyInstanceUID"] == "1.2.4"
    assert metadata["0020000D"]["Value"] == ["1.2.4"]
    assert described.attributes["SeriesInstanceUID"] == dcmread(path).SeriesInstanceUID


def test_text_is_utf8_whatever_the_file_was() -> None:
    path = next(Path(str(name)) for name in get_charset_files("chrH31.dcm"))
    metadata = json.loads(metadata_of(path))
    assert metadata["00080005"]["Value"] == ["ISO_IR 192"]
    assert metadata["00100010"]["Value"][0]["Ideographic"] == "山田^太郎"


def test_long_binary_values_are_referred_to_and_short_ones_inline() -> None:
    dataset = Dataset()
    block = dataset.private_block(0x0011, "TEST", create=True)
    block.add_new(1, "OB", b"\1" * 64)
    block.add_new(2, "OB", b"\2" * 4096)
    block.add_new(3, "OB", b"\3" * 200_000)
    metadata = json.loads(metadata_of(part10(dataset)))
    assert "InlineBinary" in metadata["00111001"]
    assert metadata["00111002"] == {"vr": "OB", "BulkDataURI": "bulkdata/00111002"}
    assert metadata["00111003"] == {"vr": "OB", "BulkDataURI": "bulkdata/00111003"}


def test_long_sequences_are_there_and_values_inside_have_their_path() -> None:
    """Functional groups of an enhanced image are longer than what pydicom defers."""
    items = []
    for number in range(3):
        item = Dataset()
        item.add_new(0x00221460, "OB", bytes(80_000) if number == 2 else b"short...")
        items.append(item)
    dataset = Dataset()
    dataset.PerFrameFunctionalGroupsSequence = items
    for long in (False, True):
        dataset["PerFrameFunctionalGroupsSequence"].is_undefined_length = long
        found = json.loads(metadata_of(part10(dataset)))["52009230"]["Value"]
        assert len(found) == 3 and "InlineBinary" in found[0]["00221460"]
        assert found[2]["00221460"] == {"vr": "OB", "BulkDataURI": "bulkdata/52009230/3/00221460"}


def test_numbers_that_json_lacks_become_text() -> None:
    dataset = Dataset()
    dataset.add_new(0x00181320, "FL", [1.5, math.inf, math.nan])
    metadata = json.loads(metadata_of(part10(dataset)))
    assert metadata["00181320"]["Value"] == [1.5, "inf", "NaN"]


@pytest.mark.parametrize("data", [b"", b"not DICOM at all", PREAMBLE, PREAMBLE + b"\xff" * 999])
def test_nonsense_is_described_by_what_the_door_knew(data: bytes) -> None:
    described = describe(data, KNOWN)
    assert described.attributes["SOPInstanceUID"] == "1.2.3"
    assert json.loads(described.metadata_json)["00080018"]["Value"] == ["1.2.3"]


def test_one_broken_element_costs_only_itself() -> None:
    dataset = Dataset()
    dataset.PatientID = "P1"
    dataset.Rows = 3
    data = part10(dataset).replace(b"\x28\x00\x10\x00US\x02\x00\x03\x00", b"\x28\x00\x10\x00FD\x02\x00\x03\x00")
    described = describe(data, {})
    assert described.attributes["PatientID"] == "P1"
    assert "Rows" not in described.attributes
    assert "00280010" not in json.loads(described.metadata_json)


def test_every_packaged_file_is_described() -> None:
    folder = Path(str(get_testdata_file("CT_small.dcm", download=False))).parent
    paths = [path for path in folder.rglob("*.dcm") if path.stat().st_size < 1 << 20]
    assert len(paths) > 60
    for path in paths:
        described = describe(path, KNOWN)
        assert described.attributes["SOPInstanceUID"] == "1.2.3"
        json.loads(described.metadata_json)
