"""WADO-RS over a real gateway with the real retrieve worker behind it, in one process: PS3.18 10.4 and 8.7."""

from __future__ import annotations

import gzip
import io
import json
import re
from collections.abc import Iterator
from email import message_from_bytes
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import httpx
import numpy as np
import pydicom
import pytest
from dicomweb_client.api import DICOMwebClient
from fastapi.testclient import TestClient
from PIL import Image
from pydicom.uid import generate_uid

from gateway import audit
from gateway import transfer_syntaxes as ts
from gateway.accept import accept_instance
from gateway.bootstrap import Gateway, build
from gateway.errors import PalimpsestError
from gateway.jobs import MemoryQueue
from gateway.part10 import EXPLICIT_BE, EXPLICIT_LE, IMPLICIT_LE
from gateway.settings import load_settings
from gateway.tokens import mint_token
from service import wado_bulk
from service.api import create_app
from tests.integration.test_service_api import serving
from tests.object_makers import packaged
from tests.proving import InProcess
from worker.indexing import index_instance
from worker.pipeline import process_instance
from worker.retrieve import retrieve, retrieve_failure
from worker.transcode import transcode

pytestmark = [pytest.mark.integration, pytest.mark.filterwarnings("ignore::UserWarning")]


class Working(MemoryQueue):
    """A queue whose `call` is answered by the retrieve worker itself."""

    gateway: Gateway

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[str] = []

    def call(self, task: str, args: Any, queue: str, timeout: float, priority: int = 0) -> dict[str, Any]:
        self.asked.append(str(args[1]))
        try:
            return retrieve(self.gateway, *args)
        except PalimpsestError as error:
            return retrieve_failure(self.gateway, int(args[0]), error)


@pytest.fixture
def gateway(tmp_path: Path) -> Iterator[Gateway]:
    queue = Working()
    queue.gateway = build(load_settings(home=tmp_path / "home", watermark_bytes=1), queue=queue)
    yield queue.gateway
    queue.gateway.close()


@pytest.fixture
def web(gateway: Gateway) -> Iterator[TestClient]:
    headers = {"Authorization": f"Bearer {mint_token(gateway, 'clinician', 'test')}"}
    with TestClient(create_app(gateway), raise_server_exceptions=False, headers=headers) as client:
        yield client


def take_in(gateway: Gateway, data: bytes, *, indexed: bool = True) -> pydicom.Dataset:
    incoming = gateway.spool.incoming()
    incoming.write_bytes(data)
    row = accept_instance(gateway, incoming, source="stow", calling_ae="TEST").row
    if indexed:
        index_instance(gateway, row.id)
    return pydicom.dcmread(io.BytesIO(data))


def changed(name: str, **changes: Any) -> bytes:
    ds = pydicom.dcmread(io.BytesIO(packaged(name)))
    for keyword, value in changes.items():
        setattr(ds, keyword, value)
    ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID
    out = io.BytesIO()
    ds.save_as(out)
    return out.getvalue()


def path_of(ds: pydicom.Dataset, level: str = "instance") -> str:
    path = f"/dicomweb/studies/{ds.StudyInstanceUID}"
    if level != "study":
        path += f"/series/{ds.SeriesInstanceUID}"
    return path + (f"/instances/{ds.SOPInstanceUID}" if level == "instance" else "")


def get(web: TestClient, path: str, accept: str = "*/*", **headers: str) -> httpx.Response:
    return web.get(path, headers={"Accept": accept, **{name.replace("_", "-"): v for name, v in headers.items()}})


def parts(answer: httpx.Response) -> list[tuple[dict[str, str], bytes]]:
    """(headers, body) of each part, read by the standard library."""
    assert answer.headers["content-type"].startswith("multipart/related; type=")
    whole = b"Content-Type: " + answer.headers["content-type"].encode() + b"\r\n\r\n" + answer.content
    found = message_from_bytes(whole).get_payload()
    assert isinstance(found, list)
    boundary = answer.headers["content-type"].split("boundary=")[1].encode()
    bodies = [piece.split(b"\r\n\r\n", 1)[1][:-2] for piece in answer.content.split(b"--" + boundary)[1:-1]]
    return [({k.lower(): v for k, v in part.items()}, body) for part, body in zip(found, bodies, strict=True)]


def syntax_in(media: str) -> str:
    return media.partition("transfer-syntax=")[2]


# --- negotiation ---

RELATED = 'multipart/related; type="application/dicom"'
J2K, JPEG, EXTENDED = (f"1.2.840.10008.1.2.4.{number}" for number in (90, 50, 51))
IMPLICIT = "MR_small_implicit.dcm"

#: (file, Accept) -> (status, in multipart?, transfer syntax)
INSTANCES = (
    (IMPLICIT, "*/*", 200, True, IMPLICIT_LE),
    (IMPLICIT, "", 200, True, IMPLICIT_LE),
    (IMPLICIT, "multipart/*", 200, True, IMPLICIT_LE),
    (IMPLICIT, RELATED, 200, True, EXPLICIT_LE),
    (IMPLICIT, f"{RELATED}; transfer-syntax=*", 200, True, IMPLICIT_LE),
    (IMPLICIT, "application/dicom", 200, False, EXPLICIT_LE),
    (IMPLICIT, "application/dicom; transfer-syntax=*", 200, False, IMPLICIT_LE),
    (IMPLICIT, f"application/dicom; transfer-syntax={ts.HTJ2K}", 200, False, ts.HTJ2K),
    (IMPLICIT, f"application/dicom; transfer-syntax={IMPLICIT_LE}", 406, False, ""),  # not over the web (8.7.3)
    (IMPLICIT, "application/dicom; transfer-syntax=1.2.840.10008.1.2.4.50", 406, False, ""),
    (IMPLICIT, "application/dicom; transfer-syntax=../../etc", 406, False, ""),
    (IMPLICIT, f"application/dicom; transfer-syntax={JPEG}, application/dicom;q=0.5", 200, False, EXPLICIT_LE),
    (IMPLICIT, f"application/dicom;q=0.1, {RELATED};transfer-syntax={J2K};q=0.9", 200, True, J2K),
    (IMPLICIT, f"application/dicom;q=0, {RELATED}", 200, True, EXPLICIT_LE),
    (IMPLICIT, "text/html", 406, False, ""),
    (IMPLICIT, "application/dicom;q=0", 406, False, ""),
    ("JPGExtended.dcm", "application/dicom", 200, False, "1.2.840.10008.1.2.4.51"),  # lossy: as it is (8.7.3)
    ("JPGExtended.dcm", f"application/dicom; transfer-syntax={EXPLICIT_LE}", 406, False, ""),
    ("JPGExtended.dcm", f"application/dicom; transfer-syntax={EXTENDED}", 200, False, EXTENDED),
    ("MR_small_RLE.dcm", "application/dicom", 200, False, EXPLICIT_LE),
    ("MR_small_RLE.dcm", f"application/dicom; transfer-syntax={ts.RLE}", 200, False, ts.RLE),
)  # fmt: skip


def test_instances_come_in_the_form_asked_for(web: TestClient, gateway: Gateway) -> None:
    files = {name: changed_uid(packaged(name)) for name in sorted({row[0] for row in INSTANCES})}
    stored = {name: (data, take_in(gateway, data)) for name, data in files.items()}
    for name, accept, status, multipart, syntax in INSTANCES:
        data, ds = stored[name]
        for by_query in (False, True):
            if by_query:
                answer = web.get(path_of(ds), params={"accept": accept} if accept else {}, headers={"Accept": "*/*"})
            else:
                answer = get(web, path_of(ds), accept)
            assert answer.status_code == status, (name, accept, answer.text[:200])
            if status != 200:
                assert answer.headers["content-type"] == "application/problem+json"
                continue
            media, body = answer.headers["content-type"], answer.content
            assert media.startswith("multipart/related") == multipart, accept
            if multipart:
                ((headers, body),) = parts(answer)
                media = headers["content-type"]
            assert syntax_in(media) == syntax, accept
            found = pydicom.dcmread(io.BytesIO(body))
            assert (found.file_meta.TransferSyntaxUID, found.SOPInstanceUID) == (syntax, ds.SOPInstanceUID)
            if syntax == ds.file_meta.TransferSyntaxUID:
                assert body == data


#: (file, Accept) -> (status, in multipart?, Content-Type)
OCTETS = "application/octet-stream"
PLAIN = f"{OCTETS};transfer-syntax={EXPLICIT_LE}"
RPCL = f"image/jphc;transfer-syntax={ts.HTJ2K_RPCL}"
FRAMES = (
    ("CT_small.dcm", "*/*", 200, True, PLAIN),
    ("CT_small.dcm", f'multipart/related; type="{OCTETS}"', 200, True, PLAIN),
    ("CT_small.dcm", f"multipart/related; type={OCTETS}; transfer-syntax=*", 200, True, PLAIN),
    ("CT_small.dcm", OCTETS, 200, False, PLAIN),
    ("CT_small.dcm", 'multipart/related; type="image/jphc"', 200, True, f"image/jphc;transfer-syntax={ts.HTJ2K}"),
    ("CT_small.dcm", f'multipart/related; type="image/jphc"; transfer-syntax={ts.HTJ2K_RPCL}', 200, True, RPCL),
    ("CT_small.dcm", "image/jls", 200, False, f"image/jls;transfer-syntax={ts.JPEG_LS}"),
    ("CT_small.dcm", "image/x-jls", 200, False, f"image/jls;transfer-syntax={ts.JPEG_LS}"),
    ("CT_small.dcm", "image/jp2", 200, False, f"image/jp2;transfer-syntax={J2K}"),
    ("CT_small.dcm", "image/dicom-rle", 200, False, f"image/dicom-rle;transfer-syntax={ts.RLE}"),
    ("CT_small.dcm", "image/jpeg", 200, False, f"image/jpeg;transfer-syntax={ts.JPEG_LOSSLESS}"),
    ("CT_small.dcm", "image/*", 200, False, f"image/jphc;transfer-syntax={ts.HTJ2K_RPCL}"),
    ("CT_small.dcm", "image/jxl", 406, False, ""),  # signed
    ("CT_small.dcm", "image/jxl, image/jls;q=0.3", 200, False, f"image/jls;transfer-syntax={ts.JPEG_LS}"),
    ("CT_small.dcm", f"image/jls; transfer-syntax={J2K}", 406, False, ""),
    ("CT_small.dcm", "video/mp4", 406, False, ""),
    ("CT_small.dcm", "text/plain", 406, False, ""),
    ("JPGExtended.dcm", "image/jpeg", 200, False, "image/jpeg;transfer-syntax=1.2.840.10008.1.2.4.51"),
    ("JPGExtended.dcm", "*/*", 200, True, "image/jpeg;transfer-syntax=1.2.840.10008.1.2.4.51"),
    ("JPGExtended.dcm", f"{OCTETS}; transfer-syntax=*", 200, False, f"{OCTETS};transfer-syntax=1.2.840.10008.1.2.4.51"),
    ("JPGExtended.dcm", OCTETS, 406, False, ""),
    ("MR_small_bigendian.dcm", "*/*", 200, True, PLAIN),
    ("MR_small_RLE.dcm", "*/*", 200, True, f"image/dicom-rle;transfer-syntax={ts.RLE}"),
)  # fmt: skip


def test_frames_come_in_the_form_asked_for(web: TestClient, gateway: Gateway) -> None:
    files = {name: changed_uid(packaged(name)) for name in sorted({row[0] for row in FRAMES})}
    stored = {name: take_in(gateway, data) for name, data in files.items()}
    for name, accept, status, multipart, media in FRAMES:
        ds = stored[name]
        answer = get(web, path_of(ds) + "/frames/1", accept)
        assert answer.status_code == status, (name, accept, answer.text[:300])
        if status != 200:
            continue
        found, body = answer.headers["content-type"], answer.content
        if multipart:
            ((headers, body),) = parts(answer)
            found = headers["content-type"]
            assert headers["content-location"] == path_of(ds) + "/frames/1"
        assert found == media, accept
        syntax = syntax_in(media)
        if media.startswith(OCTETS) and syntax == EXPLICIT_LE:
            expected = np.ascontiguousarray(ds.pixel_array, dtype=ds.pixel_array.dtype.newbyteorder("<")).tobytes()
            assert body == expected
        else:
            own = pydicom.dcmread(io.BytesIO(transcode(packaged(name), syntax)))
            assert body == next(pydicom.encaps.generate_frames(own.PixelData, number_of_frames=1))


def volume(count: int = 7) -> tuple[bytes, np.ndarray[Any, Any]]:
    pixels = np.random.default_rng(5).integers(0, 4096, (count, 24, 20)).astype("<u2")
    data = changed(
        "CT_small.dcm", SOPInstanceUID=generate_uid(), NumberOfFrames=count, Rows=24, Columns=20, BitsStored=12,
        HighBit=11, PixelRepresentation=0, PixelData=pixels.tobytes(),
    )  # fmt: skip
    return data, pixels


def test_frame_lists_are_one_request_to_the_worker(web: TestClient, gateway: Gateway) -> None:
    data, pixels = volume()
    ds = take_in(gateway, data)
    asked = gateway.queue.asked  # type: ignore[attr-defined]
    for text, numbers in (("1,3-5", [1, 3, 4, 5]), ("7", [7]), ("2,2,1", [2, 2, 1]), ("1-7", list(range(1, 8)))):
        answer = get(web, f"{path_of(ds)}/frames/{text}")
        assert [body for _, body in parts(answer)] == [pixels[n - 1].tobytes() for n in numbers]
        asked.clear()
        answer = get(web, f"{path_of(ds)}/frames/{text}", 'multipart/related; type="image/jls"')
        assert [head["content-location"].rsplit("/", 1)[1] for head, _ in parts(answer)] == [str(n) for n in numbers]
        assert len(asked) <= 1
    assert asked == []  # the file was known from the first request on
    for text, status in (("0", 400), ("8", 404), ("1,8", 404), ("x", 400), ("5-3", 400), ("1-999999999", 400),
                         ("1,,2", 400), ("%31%00", 400), ("\u0663", 400)):  # fmt: skip
        assert get(web, f"{path_of(ds)}/frames/{text}").status_code == status, text
    assert get(web, f"{path_of(ds)}/frames/1,2", OCTETS).status_code == 406
    report = packaged("test-SR.dcm")
    assert get(web, path_of(take_in(gateway, report)) + "/frames/1").status_code == 404


def test_a_frame_that_rotted_after_it_was_known_is_not_given(web: TestClient, gateway: Gateway) -> None:
    data, pixels = volume()
    ds = take_in(gateway, data)
    assert get(web, path_of(ds) + "/frames/2", OCTETS).content == pixels[1].tobytes()
    row = gateway.index.by_sop(ds.SOPInstanceUID)
    assert row is not None
    file = gateway.spool.path(row.digest)
    rotten = bytearray(file.read_bytes())
    rotten[rotten.index(pixels[1].tobytes()) + 5] ^= 1
    file.write_bytes(bytes(rotten))
    with pytest.raises(Exception):  # noqa: B017, PT011  (the connection is cut behind the headers)
        answer = get(web, path_of(ds) + "/frames/2", OCTETS)
        assert answer.content == pixels[1].tobytes()
    assert get(web, path_of(ds) + "/frames/3", OCTETS).content == pixels[2].tobytes()
    assert [alert.kind for alert in gateway.index.alerts()] == ["digest-mismatch"]


def test_frames_of_a_damaged_spool_file_come_from_the_archive(web: TestClient, gateway: Gateway) -> None:
    data, pixels = volume()
    ds = take_in(gateway, data)
    row = gateway.index.by_sop(ds.SOPInstanceUID)
    assert row is not None
    process_instance(gateway, InProcess(gateway.keys), row.id, "w")  # type: ignore[arg-type]
    file = gateway.spool.path(row.digest)
    whole = file.read_bytes()
    file.write_bytes(bytes([*whole[:-3], whole[-3] ^ 1, *whole[-2:]]))
    for number in (2, 7, 2):  # the last frame is the damaged one
        assert get(web, f"{path_of(ds)}/frames/{number}", OCTETS).content == pixels[number - 1].tobytes()
    assert [alert.kind for alert in gateway.index.alerts()] == ["digest-mismatch"]


# --- metadata and bulk data ---


def test_every_reference_of_the_metadata_resolves(
    web: TestClient, gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    inner = pydicom.Dataset()
    inner.add_new(0x00221460, "OB", bytes(range(256)) * 16)
    data = changed(
        "MR_small_bigendian.dcm", ReferencedImageSequence=[pydicom.Dataset(), inner], ICCProfile=b"icc." * 999
    )
    for indexed in (True, False):
        ds = take_in(gateway, changed_uid(data), indexed=indexed)
        for level in ("study", "series", "instance"):
            answer = get(web, path_of(ds, level) + "/metadata", "application/dicom+json")
            assert answer.headers["content-type"] == "application/dicom+json"
            (found,) = [item for item in answer.json() if item["00080018"]["Value"] == [ds.SOPInstanceUID]]
            uris = re.findall(r'"BulkDataURI": ?"([^"]+)"', json.dumps(found))
            assert len(uris) == 3 and all(uri.startswith("http://testserver/dicomweb/studies/") for uri in uris)
        values = {uri.split("/bulkdata/")[1]: get(web, uri, OCTETS) for uri in uris}
        assert values["00282000"].content == b"icc." * 999
        assert values["00081140/2/00221460"].content == bytes(range(256)) * 16
        assert values["7FE00010"].content == ds.pixel_array.astype("<i2").tobytes()
        listed = get(web, path_of(ds) + "/bulkdata")
        assert {head["content-location"]: body for head, body in parts(listed)} == {
            f"{path_of(ds)}/bulkdata/00282000": values["00282000"].content,
            f"{path_of(ds)}/bulkdata/00081140/2/00221460": values["00081140/2/00221460"].content,
            f"{path_of(ds)}/frames/1": values["7FE00010"].content,
        }
    proven: list[object] = []
    real = wado_bulk.open_as
    monkeypatch.setattr(wado_bulk, "open_as", lambda *given: proven.append(given) or real(*given))
    assert len(parts(get(web, path_of(ds, "study") + "/bulkdata"))) == 6
    assert len(proven) == 2  # once an instance, not once a value
    for path in ("00100010/1/00100020", "00081140/9/00221460", "zz", "00081140", "%2e%2e/x", "7FE00010/1"):
        assert get(web, f"{path_of(ds)}/bulkdata/{path}", OCTETS).status_code == 404, path
    assert get(web, f"{path_of(ds)}/bulkdata/00282000", "image/jls").status_code == 406


def changed_uid(data: bytes) -> bytes:
    ds = pydicom.dcmread(io.BytesIO(data))
    ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    out = io.BytesIO()
    ds.save_as(out)
    return out.getvalue()


def test_metadata_as_xml_and_gzipped(web: TestClient, gateway: Gateway) -> None:
    ds = take_in(
        gateway,
        changed("CT_small.dcm", PatientName="M\u00fcller^J\u00f6rg=\u5c71\u7530", SpecificCharacterSet="ISO_IR 192"),
    )
    take_in(gateway, changed_uid(packaged("CT_small.dcm")))
    answer = get(web, path_of(ds) + "/metadata", 'multipart/related; type="application/dicom+xml"')
    ((headers, body),) = parts(answer)
    assert headers["content-type"] == "application/dicom+xml"
    space = {"n": "http://dicom.nema.org/PS3.19/models/NativeDICOM"}
    root = ElementTree.fromstring(body)
    assert root.findtext(".//n:DicomAttribute[@keyword='SOPInstanceUID']/n:Value", None, space) == ds.SOPInstanceUID
    assert root.findtext(".//n:Alphabetic/n:FamilyName", None, space) == "M\u00fcller"
    assert root.findtext(".//n:Ideographic/n:FamilyName", None, space) == "\u5c71\u7530"
    assert root.find(".//n:DicomAttribute[@tag='7FE00010']/n:BulkData", space) is not None
    path = path_of(ds, "study") + "/metadata"
    with web.stream("GET", path, headers={"Accept-Encoding": "gzip"}) as zipped:
        raw = b"".join(zipped.iter_raw())
    assert zipped.headers["content-encoding"] == "gzip"
    plain = get(web, path, "application/json", Accept_Encoding="gzip;q=0")
    assert "content-encoding" not in plain.headers and json.loads(gzip.decompress(raw)) == plain.json()
    assert len(plain.json()) == 2
    for accept in ("text/html", 'multipart/related; type="application/dicom"'):
        assert get(web, path, accept).status_code == 406


# --- rendered ---


def test_rendered_at_every_level_with_parameters(web: TestClient, gateway: Gateway) -> None:
    data, _ = volume()
    ds = take_in(gateway, data)
    take_in(gateway, changed_uid(packaged("CT_small.dcm")))
    report = pydicom.dcmread(io.BytesIO(packaged("test-SR.dcm")))
    report.StudyInstanceUID, report.SeriesInstanceUID = ds.StudyInstanceUID, generate_uid()
    out = io.BytesIO()
    report.save_as(out)
    take_in(gateway, out.getvalue())
    query = "?viewport=48,48&window=40,400,linear&quality=50&annotation=technique&iccprofile=no"
    one = get(web, path_of(ds) + "/rendered" + query, "image/jpeg")
    assert one.headers["content-type"] == "image/jpeg" and Image.open(io.BytesIO(one.content)).size == (40, 48)
    longest = "?viewport=48,48,0.12345678,0.12345678,30.1234567,30.1234567&window=40.1234567,400.123456,linear-exact"
    assert get(web, path_of(ds) + f"/rendered{longest}&quality=50&annotation=patient,technique").status_code == 200
    for accept, kind in (("image/png", "PNG"), ("image/gif", "GIF"), ("*/*", "JPEG"), ("image/*", "JPEG")):
        assert Image.open(io.BytesIO(get(web, path_of(ds) + "/frames/3/rendered", accept).content)).format == kind
    several = get(web, path_of(ds) + "/frames/1,3-4/rendered", 'multipart/related; type="image/png"')
    assert [head["content-type"] for head, _ in parts(several)] == ["image/png"] * 3
    assert get(web, path_of(ds) + "/frames/1,3/rendered", "image/png").status_code == 406
    for level, count, status in (("series", 2, 200), ("study", 2, 206)):
        answer = get(web, path_of(ds, level) + "/rendered")
        assert (answer.status_code, len(parts(answer))) == (status, count)
    assert answer.headers["warning"].startswith("299 ")
    for level in ("study", "series", "instance"):
        small = get(web, path_of(ds, level) + "/thumbnail?viewport=32,32", "image/png")
        assert max(Image.open(io.BytesIO(small.content)).size) == 32
    assert max(Image.open(io.BytesIO(get(web, path_of(ds) + "/frames/7/thumbnail").content)).size) == 128
    sr = path_of(pydicom.dcmread(io.BytesIO(out.getvalue())))
    for path, status in (
        (path_of(ds) + "/frames/8/rendered", 404), (path_of(ds) + "/frames/8/thumbnail", 404), (sr + "/rendered", 406),
        (sr + "/thumbnail", 406), (path_of(ds) + "/rendered?viewport=8,4,99,0,8,4", 400),
        (path_of(ds) + "/rendered?quality=101", 400), (path_of(ds) + "/thumbnail?window=1,2,linear", 400),
        (path_of(ds) + "/thumbnail?viewport=1,2,0,0,3,3", 400), (path_of(ds) + "/frames/1,2/thumbnail", 400),
    ):  # fmt: skip
        assert get(web, path).status_code == status, path


# --- caches, ranges, HEAD ---


def test_validators_ranges_and_head(web: TestClient, gateway: Gateway) -> None:
    data, pixels = volume()
    ds = take_in(gateway, data)
    take_in(gateway, changed_uid(packaged("CT_small.dcm")))
    singles = {
        path_of(ds): "application/dicom; transfer-syntax=*", path_of(ds) + "/frames/2": OCTETS,
        path_of(ds) + "/rendered": "image/png", path_of(ds) + "/bulkdata/7FE00010": OCTETS,
    }  # fmt: skip
    for path, accept in singles.items():
        whole = get(web, path, accept)
        tag, size = whole.headers["etag"], len(whole.content)
        assert (whole.headers["accept-ranges"], whole.headers["cache-control"]) == ("bytes", "private, no-cache")
        assert "Accept" in whole.headers["vary"] and tag.startswith('"')
        for given in (tag, f'"other", W/{tag}', "*"):
            same = get(web, path, accept, If_None_Match=given)
            assert (same.status_code, same.content, same.headers["etag"]) == (304, b"", tag)
        assert get(web, path, accept, If_None_Match='"other"').status_code == 200
        for asked, start, end in (("bytes=0-9", 0, 10), ("bytes=5-", 5, size), ("bytes=-7", size - 7, size)):
            some = get(web, path, accept, Range=asked)
            assert (some.status_code, some.content) == (206, whole.content[start:end])
            assert some.headers["content-range"] == f"bytes {start}-{end - 1}/{size}"
        beyond = get(web, path, accept, Range=f"bytes={size}-")
        assert (beyond.status_code, beyond.headers["content-range"]) == (416, f"bytes */{size}")
        for odd in ("bytes=0-1,3-4", "bytes=9-3", "lines=1-2", "bytes=-", "bytes=99999999999999999-"):
            assert get(web, path, accept, Range=odd).status_code == 200, odd
        assert get(web, path, accept, Range="bytes=0-1", If_Range='"other"').content == whole.content
        assert get(web, path, accept, Range="bytes=0-1", If_Range=tag).status_code == 206
        head = web.head(path, headers={"Accept": accept})
        assert (head.status_code, head.content, head.headers["etag"]) == (200, b"", tag)
        assert int(head.headers["content-length"]) == size
    for path in (path_of(ds, "study"), path_of(ds, "study") + "/metadata", path_of(ds) + "/frames/1,2"):
        answer = get(web, path)
        assert answer.headers["etag"].startswith('W/"') and "set-cookie" not in answer.headers
        assert get(web, path, If_None_Match=answer.headers["etag"]).status_code == 304
        head = web.head(path)
        assert (head.status_code, head.content) == (200, b"")
    take_in(gateway, changed_uid(packaged("CT_small.dcm")))
    assert get(web, path_of(ds, "study"), If_None_Match=get(web, path_of(ds)).headers["etag"]).status_code == 200


def test_a_study_of_which_some_cannot_be_given_is_partial(web: TestClient, gateway: Gateway) -> None:
    ds = take_in(gateway, packaged("CT_small.dcm"))
    lossy = pydicom.dcmread(io.BytesIO(packaged("JPGExtended.dcm")))
    lossy.StudyInstanceUID = ds.StudyInstanceUID
    out = io.BytesIO()
    lossy.save_as(out)
    take_in(gateway, out.getvalue())
    answer = get(web, path_of(ds, "study"), f"{RELATED}; transfer-syntax={ts.JPEG_LS}")
    assert (answer.status_code, len(parts(answer))) == (206, 1)
    assert "1 instances" in answer.headers["warning"]
    both = get(web, path_of(ds, "study"), RELATED)
    assert both.status_code == 200
    assert sorted(syntax_in(head["content-type"]) for head, _ in parts(both)) == [EXPLICIT_LE, "1.2.840.10008.1.2.4.51"]


# --- a client that is not ours ---


def test_dicomweb_client_retrieves_everything_unmodified(gateway: Gateway) -> None:
    data, pixels = volume()
    ds = take_in(gateway, data)
    uids = (ds.StudyInstanceUID, ds.SeriesInstanceUID, ds.SOPInstanceUID)
    token = {"Authorization": f"Bearer {mint_token(gateway, 'clinician', 'test')}"}
    with serving(gateway) as base:
        client = DICOMwebClient(f"{base}/dicomweb", headers=token)
        assert np.array_equal(client.retrieve_instance(*uids).pixel_array, pixels)
        assert [found.SOPInstanceUID for found in client.retrieve_series(*uids[:2])] == [ds.SOPInstanceUID]
        assert client.retrieve_instance_frames(*uids, [2, 5]) == [pixels[1].tobytes(), pixels[4].tobytes()]
        octets = ((OCTETS, EXPLICIT_LE),)
        assert list(client.iter_instance_frames(*uids, [7], media_types=octets)) == [pixels[6].tobytes()]
        for media in (("image/jls", ts.JPEG_LS), ("image/jp2", J2K), ("image/x-dicom-rle", ts.RLE)):
            own = pydicom.dcmread(io.BytesIO(transcode(data, media[1])))
            expected = list(pydicom.encaps.generate_frames(own.PixelData, number_of_frames=7))
            assert client.retrieve_instance_frames(*uids, [1, 7], media_types=(media,)) == [expected[0], expected[6]]
        metadata = client.retrieve_instance_metadata(*uids)
        uri = metadata["7FE00010"]["BulkDataURI"]
        assert b"".join(client.retrieve_bulkdata(uri)) == pixels.tobytes()
        assert client.retrieve_bulkdata(uri, media_types=(OCTETS,)) == [pixels.tobytes()]
        assert len(client.retrieve_study_metadata(uids[0])) == len(client.retrieve_series_metadata(*uids[:2])) == 1
        png = client.retrieve_instance_rendered(
            *uids, media_types=("image/png",), params={"viewport": "10,12", "window": "2000,4000,linear"}
        )
        assert Image.open(io.BytesIO(png)).size == (10, 12)
        jpeg = client.retrieve_instance_frames_rendered(*uids, [3], media_types=("image/jpeg",), params={"quality": 30})
        assert Image.open(io.BytesIO(jpeg)).format == "JPEG"
        assert [d.SOPInstanceUID for d in client.iter_study(uids[0])] == [ds.SOPInstanceUID]


def test_every_read_is_audited_under_its_kind(web: TestClient, gateway: Gateway) -> None:
    ds = take_in(gateway, packaged("CT_small.dcm"))
    for path in ("", "/metadata", "/frames/1", "/rendered", "/thumbnail", "/bulkdata", "/bulkdata/7FE00010"):
        assert get(web, path_of(ds) + path).status_code == 200
    kinds = [
        event["detail"]["kind"] for event in reversed(audit.tail(gateway.index, 100)) if event["event"] == "retrieved"
    ]
    assert kinds == ["instances", "metadata", "frames", "rendered", "rendered", "bulkdata", "frames"]
    assert EXPLICIT_BE not in ts.MADE
