"""The judge of `palimpsest send`: says equal only of what is equal, for each of its three promises."""

import io
from pathlib import Path

import numpy as np
import pytest
from pydicom import dcmread, dcmwrite
from pydicom.data import get_testdata_file
from pydicom.pixels import get_decoder
from pydicom.uid import ExplicitVRLittleEndian

from gateway.part10 import peek, walk
from palimpsest import compare as judge
from palimpsest.compare import PIXEL_DATA, compare, dataset_digest, first_difference
from palimpsest.samples import SAMPLES, fresh_uid, packaged_files, write_samples
from palimpsest.scan import Found, Skipped, find_files, inspect

COMPRESSED = ["MR_small_RLE.dcm", "MR_small_jpeg_ls_lossless.dcm", "SC_rgb_jpeg_gdcm.dcm", "MR_small_jp2klossless.dcm"]


def packaged(name: str) -> Path:
    return Path(str(get_testdata_file(name, download=False)))


def natively(path: Path, out: Path, *, change: str = "") -> Path:
    """The same object with native pixels: what a gateway restores of a losslessly compressed one."""
    dataset = dcmread(path)
    pixels, _ = get_decoder(dataset.file_meta.TransferSyntaxUID).as_array(dataset, raw=True)
    if change == "pixel":
        pixels = pixels.copy()
        pixels.flat[7] ^= 1
    source, head = path.read_bytes(), peek(path)
    elements = walk(memoryview(source), head.transfer_syntax, head.dataset_offset)
    element = next(e for e in elements if e.tag == PIXEL_DATA)
    value = pixels.tobytes()
    vr = b"OW" if pixels.dtype.itemsize == 2 else b"OB"
    body = source[head.dataset_offset : element.offset]
    body += b"\xe0\x7f\x10\x00" + vr + b"\0\0" + len(value).to_bytes(4, "little") + value + source[element.end :]
    if change == "header":
        position = body.index(b"MR") if b"MR" in body else 20
        body = body[:position] + b"XX" + body[position + 2 :]
    meta = io.BytesIO()
    empty = dcmread(path, stop_before_pixels=True, specific_tags=["SOPInstanceUID", "SOPClassUID"])
    empty.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dcmwrite(meta, empty, enforce_file_format=True)
    offset = peek(meta.getvalue()).dataset_offset
    out.write_bytes(meta.getvalue()[:offset] + body)
    return out


@pytest.mark.parametrize("name", COMPRESSED)
def test_compressed_and_its_native_form_are_equal(name: str, tmp_path: Path) -> None:
    verdict = compare(packaged(name), natively(packaged(name), tmp_path / "back.dcm"))
    assert verdict.equal, verdict
    assert verdict.how == "pixels and non-pixel bytes"


@pytest.mark.parametrize("name", COMPRESSED)
def test_one_changed_sample_is_found(name: str, tmp_path: Path) -> None:
    verdict = compare(packaged(name), natively(packaged(name), tmp_path / "back.dcm", change="pixel"))
    assert not verdict.equal
    assert verdict.difference.startswith("1 of ")


@pytest.mark.parametrize("change", ["", "pixel"])
def test_where_gdcm_cannot_read_what_was_sent_another_decoder_judges(
    change: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent, read = packaged("MR_small_jpeg_ls_lossless.dcm"), judge._raw_pixels
    back = natively(sent, tmp_path / "back.dcm", change=change)

    def only_native(path: Path) -> tuple[judge.Samples, None]:
        if path == sent:
            raise RuntimeError("unusual depth")
        return read(path)

    monkeypatch.setattr(judge, "_raw_pixels", only_native)
    assert compare(sent, back).equal is not change.startswith("pixel")


def test_what_no_decoder_reads_is_not_equal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sent = packaged("MR_small_RLE.dcm")
    back = natively(sent, tmp_path / "back.dcm")

    def nothing(path: Path) -> tuple[judge.Samples, None]:
        raise RuntimeError("no")

    monkeypatch.setattr(judge, "_raw_pixels", nothing)
    assert "could not be decoded" in compare(sent, back).difference


@pytest.mark.parametrize("name", COMPRESSED)
def test_one_changed_header_byte_is_found(name: str, tmp_path: Path) -> None:
    verdict = compare(packaged(name), natively(packaged(name), tmp_path / "back.dcm", change="header"))
    assert not verdict.equal and verdict.how == "non-pixel bytes"


@pytest.mark.parametrize("where", [400, 20_000, -1])
def test_one_changed_byte_of_an_uncompressed_file_is_found(where: int, tmp_path: Path) -> None:
    content = bytearray(packaged("CT_small.dcm").read_bytes())
    content[where] ^= 1
    changed = tmp_path / "changed.dcm"
    changed.write_bytes(content)
    verdict = compare(packaged("CT_small.dcm"), changed)
    assert not verdict.equal and verdict.how == "bytes"
    assert "first at data set byte" in verdict.difference


def test_a_cut_file_and_a_file_of_another_kind_are_differences(tmp_path: Path) -> None:
    cut = tmp_path / "cut.dcm"
    cut.write_bytes(packaged("CT_small.dcm").read_bytes()[:-2])
    assert "equal up to byte" in compare(packaged("CT_small.dcm"), cut).difference
    cut.write_bytes(b"no DICOM at all" * 20)
    assert compare(packaged("CT_small.dcm"), cut).how == "unreadable"


def test_other_file_meta_is_no_difference_but_another_syntax_is(tmp_path: Path) -> None:
    dataset = dcmread(packaged("CT_small.dcm"))
    dataset.file_meta.ImplementationVersionName = "ANOTHER WRITER"
    written = io.BytesIO()
    dcmwrite(written, dataset, enforce_file_format=True)
    offset = peek(written.getvalue()).dataset_offset
    source = packaged("CT_small.dcm").read_bytes()
    body = source[peek(source).dataset_offset :]
    other = tmp_path / "other.dcm"
    other.write_bytes(written.getvalue()[:offset] + body)
    assert compare(packaged("CT_small.dcm"), other).equal
    other.write_bytes(written.getvalue()[:offset].replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.1.2.2\0") + body)
    assert "transfer syntax" in compare(packaged("CT_small.dcm"), other).difference


def test_a_difference_never_shows_content() -> None:
    text = first_difference(b"DOE^JANE" * 10, b"DOE^JOHN" * 10)
    assert "DOE" not in text and "data set byte 5" in text


def test_samples_are_all_there_and_no_two_share_a_uid(tmp_path: Path) -> None:
    paths = write_samples(tmp_path)
    heads = [peek(path) for path in paths]
    assert len({head.sop_instance_uid for head in heads}) == len(paths) == len(SAMPLES)
    again = {path.name: path.read_bytes() for path in write_samples(tmp_path / "again")}
    assert {path.name: path.read_bytes() for path in paths} == again


def test_samples_that_keep_their_uid_are_byte_for_byte_the_packaged_file(tmp_path: Path) -> None:
    packaged_by_name = packaged_files()
    same = [path for path in write_samples(tmp_path) if path.read_bytes() == packaged_by_name[path.name].read_bytes()]
    assert len(same) > len(packaged_by_name) // 2
    changed = [path for path in tmp_path.iterdir() if path not in same]
    for path in changed:
        before, after = dcmread(packaged_by_name[path.name]), dcmread(path)
        assert after.SOPInstanceUID == fresh_uid(packaged_by_name[path.name].read_bytes())
        assert np.array_equal(np.frombuffer(before.PixelData, np.uint8), np.frombuffer(after.PixelData, np.uint8))


def test_scan_names_what_is_not_dicom_and_digests_what_is(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "notes.txt").write_text("not an image")
    (tmp_path / "sub" / "empty").touch()
    good = tmp_path / "sub" / "ct.dcm"
    good.write_bytes(packaged("CT_small.dcm").read_bytes())
    found = [inspect(path) for path in find_files([tmp_path, good, tmp_path / "missing"])]
    skipped = {item.path.name: item.reason for item in found if isinstance(item, Skipped)}
    assert skipped == {"notes.txt": "not-part10", "empty": "not-part10", "missing": "no-such-file"}
    (ct,) = [item for item in found if isinstance(item, Found)]
    assert ct.dataset_digest == dataset_digest(good, ct.head.dataset_offset) and ct.size == good.stat().st_size
