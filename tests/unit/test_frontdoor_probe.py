"""`palimpsest probe` and `replay`: what a destination really keeps is found out, kept, shown and used."""

from __future__ import annotations

import json
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from pydicom import dcmread
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.filewriter import write_file_meta_info
from pynetdicom import AE, evt
from pynetdicom.sop_class import (  # type: ignore[attr-defined]
    StudyRootQueryRetrieveInformationModelFind,
    StudyRootQueryRetrieveInformationModelGet,
    Verification,
)
from typer.testing import CliRunner

from gateway.audit import tail
from gateway.bootstrap import Gateway, build
from gateway.errors import NotFound, Unavailable
from gateway.instance import ForwardState
from gateway.jobs import MemoryQueue
from gateway.part10 import peek
from gateway.probe_result import RAW_DATA
from gateway.settings import Destination, Settings, load_settings
from gateway.transfer_syntaxes import HTJ2K, JPEG_LS
from palimpsest.cli import app
from palimpsest.probe import run_probe
from service.overview import destinations
from service.status import replay_forwards
from tests.fakes import CT, take_in
from tests.object_makers import EXPLICIT, IMPLICIT, image, noisy
from tests.running import free_port
from worker import canaries
from worker.canaries import PATIENT_ID, Canary
from worker.compare import difference

runner = CliRunner()


@pytest.fixture(autouse=True)
def few(monkeypatch: pytest.MonkeyPatch) -> list[Canary]:
    """Canaries that need no codec of ours: three native ones, two that only have the names of a syntax."""
    made = canaries._envelope(canaries._uid())
    images = [canaries._image("CT", canaries.CLASSES["CT"], canaries._uid(), canaries._uid()) for _ in range(3)]
    kept = [made, canaries._canary("CT Explicit LE", images[0])]
    for name, data, syntax in (("CT JPEG-LS", images[1], JPEG_LS), ("CT HTJ2K", images[2], HTJ2K)):
        dataset = dcmread(BytesIO(data))
        dataset.PixelData = encapsulate([b"\xff\xd8\xff\xd9"])
        dataset["PixelData"].VR, dataset["PixelData"].is_undefined_length = "OB", True
        dataset.file_meta.TransferSyntaxUID = syntax
        kept.append(canaries._canary(name, canaries._written(dataset)))
    monkeypatch.setattr("palimpsest.probe.canaries", lambda: iter(kept))
    return kept


class Archive:
    """A C-STORE, C-FIND and C-GET SCP with the faults of real ones: some syntaxes come back altered, or never."""

    def __init__(self) -> None:
        self.kept: dict[str, bytes] = {}
        self.alters: set[str] = set()
        self.loses: set[str] = set()
        ae = AE(ae_title="ARCHIVE")
        for sop_class in (RAW_DATA, CT):
            ae.add_supported_context(sop_class, [EXPLICIT, IMPLICIT, JPEG_LS, HTJ2K], scu_role=True, scp_role=True)
        for model in (StudyRootQueryRetrieveInformationModelFind, StudyRootQueryRetrieveInformationModelGet):
            ae.add_supported_context(model)
        ae.add_supported_context(Verification)
        handlers = [(evt.EVT_C_STORE, self._store), (evt.EVT_C_FIND, self._find), (evt.EVT_C_GET, self._get)]
        self._server: Any = ae.start_server(("127.0.0.1", 0), block=False, evt_handlers=handlers)
        self.port = int(self._server.server_address[1])
        self.destination = Destination(name="archive", port=self.port, ae_title="ARCHIVE")

    def _store(self, event: Any) -> int:
        meta = FileMetaDataset()
        meta.MediaStorageSOPClassUID = event.request.AffectedSOPClassUID
        meta.MediaStorageSOPInstanceUID = event.request.AffectedSOPInstanceUID
        meta.TransferSyntaxUID = event.context.transfer_syntax
        meta.ImplementationClassUID = "1.2.3"
        out = BytesIO(b"\0" * 128 + b"DICM")
        out.seek(132)
        write_file_meta_info(out, meta, enforce_standard=True)
        self.kept[str(event.request.AffectedSOPInstanceUID)] = out.getvalue() + event.request.DataSet.getvalue()
        return 0

    def _find(self, event: Any) -> Iterator[tuple[int, Dataset | None]]:
        answer = Dataset()
        answer.SOPInstanceUID = event.identifier.SOPInstanceUID
        if str(answer.SOPInstanceUID) in self.kept:
            yield 0xFF00, answer

    def _get(self, event: Any) -> Iterator[Any]:
        data = self.kept.get(str(event.identifier.SOPInstanceUID), b"")
        syntax = peek(data).transfer_syntax if data else ""
        if not data or syntax in self.loses:
            yield 0
            return
        dataset = dcmread(BytesIO(data))
        if syntax in self.alters:
            dataset.StudyDescription = "Abdomen"
        yield 1
        yield 0xFF00, dataset

    def close(self) -> None:
        self._server.shutdown()


@pytest.fixture
def peer() -> Iterator[Archive]:
    made = Archive()
    yield made
    made.close()


@pytest.fixture
def quick(tmp_path: Path) -> Settings:
    settings = load_settings(home=tmp_path / "home", network_timeout_seconds=120.0)
    for folder in settings.folders:
        folder.mkdir(parents=True, exist_ok=True)
    return settings


def test_what_is_taken_and_not_given_back_or_given_back_otherwise_is_found(quick: Settings, peer: Archive) -> None:
    peer.loses, peer.alters = {HTJ2K}, {JPEG_LS}
    result = run_probe(quick, peer.destination)
    found = {each.name: (each.stored, dict(each.reads), each.verdict) for each in result.findings}
    both = {"c-find": "equal", "c-get": "equal"}
    assert found == {
        "envelope": ("stored", both, "proven"),
        "CT Explicit LE": ("stored", both, "proven"),
        "CT JPEG-LS": ("stored", both | {"c-get": "differs-at-00081030"}, "altered"),
        "CT HTJ2K": ("stored", both | {"c-get": "missing"}, "lost"),
    }
    assert result.ways == {"c-find": "", "c-get": ""} and result.peer.startswith("PYNETDICOM")
    assert result.refutes(CT, HTJ2K) and result.refutes(CT, JPEG_LS) and not result.refutes(CT, EXPLICIT)
    assert len(result.left) == 4 and result.place == peer.destination.place  # C-STORE has no way to take them away
    assert all(PATIENT_ID.encode() in data for data in peer.kept.values())


def test_a_way_that_gives_nothing_at_all_is_not_offered(quick: Settings, peer: Archive) -> None:
    peer.loses = {EXPLICIT, JPEG_LS, HTJ2K}
    result = run_probe(quick, peer.destination)
    assert result.ways == {"c-find": "", "c-get": "gives-nothing-back"}
    assert result.counts() == {"proven": 4}  # found by a search at least


def test_a_folder_is_left_as_it_was(quick: Settings, tmp_path: Path) -> None:
    place = Destination(name="nas", kind="filesystem", path=str(tmp_path / "nas"))
    with pytest.raises(Unavailable, match="'nas' cannot be reached"):
        run_probe(quick, place)
    (tmp_path / "nas").mkdir()
    result = run_probe(quick, place)
    assert (result.counts(), result.left) == ({"proven": 4}, ())
    assert [path for path in (tmp_path / "nas").rglob("*") if path.is_file()] == []
    run_probe(quick, place, keep=True)
    assert len(list((tmp_path / "nas").rglob("*.dcm"))) == 4


def test_the_real_canaries_show_no_patient_and_differ_each_time(few: list[Canary]) -> None:
    one, two = (canaries._image("MR", canaries.CLASSES["MR"], canaries._uid(), canaries._uid()) for _ in range(2))
    shown = dcmread(BytesIO(one))
    assert (shown.PatientID, shown.BurnedInAnnotation) == (PATIENT_ID, "NO") and shown.pixel_array.shape == (60, 70)
    assert difference(one, two) != "" and peek(one).study_uid != peek(two).study_uid
    assert few[0].sop_class == RAW_DATA


# --- the same object? ---


def test_what_peers_may_change_is_no_difference_and_every_value_and_pixel_is() -> None:
    sent = image([noisy(32, 32)], stored=12)
    dataset = dcmread(BytesIO(sent))
    as_implicit = BytesIO()
    dataset.file_meta.TransferSyntaxUID = IMPLICIT
    dataset.save_as(as_implicit, enforce_file_format=True, implicit_vr=True, little_endian=True)
    assert difference(sent, as_implicit.getvalue()) == ""
    assert difference(sent, sent + b"\0\0") == ""
    back = dcmread(BytesIO(sent))
    pixels = bytearray(back.PixelData)
    pixels[100] ^= 1
    back.PixelData = bytes(pixels)
    assert difference(sent, _saved(back)) == "pixels-differ"
    del back.PatientName
    assert difference(sent, _saved(back)) == "differs-at-00100010"
    for nonsense in (b"", b"\0" * 200, sent[:400], sent[:-50]):
        assert difference(sent, nonsense) != ""
    dark = noisy(32, 32)
    dark[16:] = 0
    sent = image([dark], stored=12)
    assert difference(sent, sent[:-1]) == ""  # it ends like padding
    assert difference(sent, sent[:-512]) != ""  # half of its black is not there any more
    back = dcmread(BytesIO(sent))
    back.PixelData = back.PixelData[:-512]
    assert difference(sent, _saved(back)) != ""


def _saved(dataset: Dataset) -> bytes:
    out = BytesIO()
    dataset.save_as(out, enforce_file_format=True)
    return out.getvalue()


# --- the commands, and what is shown ---


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "home"
    folder.mkdir()
    (tmp_path / "nas").mkdir()
    monkeypatch.setenv("PALIMPSEST_HOME", str(folder))
    places = [
        {"name": "nas", "kind": "filesystem", "path": str(tmp_path / "nas")},
        {"name": "pacs", "port": free_port()},
    ]
    (folder / "destinations.json").write_text(json.dumps(places))
    return folder


def call(*arguments: str, code: int = 0) -> str:
    result = runner.invoke(app, list(arguments))
    assert result.exit_code == code, result.output
    return result.output


def opened() -> Gateway:
    return build(load_settings(), queue=MemoryQueue())


def test_probe_keeps_what_it_found_and_shows_it(home: Path) -> None:
    assert "was not probed yet" in call("probe", "nas", "--last", code=1)
    assert "there are: nas, pacs" in call("probe", "lake", code=1)
    assert "'pacs' cannot be reached (unreachable)" in call("probe", "pacs", code=1)
    said = call("probe", "nas")
    assert "CT JPEG-LS" in said and "proven" in said and "from now on, envelope (rule 'default'): Explicit LE" in said
    shown = json.loads(call("probe", "nas", "--last", "--json"))
    assert [each["verdict"] for each in shown["findings"]] == ["proven"] * 4
    gw = opened()
    rows = {row["name"]: row for row in destinations(gw)}
    assert rows["pacs"]["probe"] is None and rows["nas"]["probe"]["counts"] == {"proven": 4}
    assert rows["nas"]["probe"]["current"] and len(rows["nas"]["probe"]["findings"]) == 4
    assert rows["nas"]["circuit"] == {"open": False, "failures": 0, "reason": None, "until": None}
    assert "probed" in [event["event"] for event in tail(gw.index)]
    gw.close()


def test_probe_says_what_holds_for_viewable_copies(home: Path) -> None:
    (home / "policy.toml").write_text(
        'version=1\n[[delivery]]\nname="v"\ndestination="nas"\nrepresentation="viewable"\n'
    )
    said = " ".join(call("probe", "nas").split())
    assert "viewable CT (rule 'v'): JPEG-LS, HTJ2K, Explicit LE, JPEG 2000, Implicit LE" in said


def dead_letters(gw: Gateway, *reasons: str) -> list[int]:
    """Dead forwards to nas and pacs for these reasons; ids of those to nas."""
    made = []
    for number, reason in enumerate(reasons):
        row = take_in(gw, image([noisy(8, 8)], SOPInstanceUID=f"1.2.{number}")).row
        for each in gw.index.forward_add(row.id, ["nas", "pacs"]):
            assert gw.index.forward_claim(each.id, "t", 60.0) is not None
            gw.index.forward_failed(each.id, "t", reason, due_at=None)
            made += [each.id] if each.destination == "nas" else []
    return made


def waiting(gw: Gateway) -> int:
    return len(gw.index.forwards(state=ForwardState.WAITING))


def test_dead_letters_are_replayed_one_some_or_all(home: Path) -> None:
    gw = opened()
    first, second, third = dead_letters(gw, "a", "b", "b")
    assert "say which" in call("replay", code=2)
    assert "1 dead letters" in call("replay", str(first)) and waiting(gw) == 1
    assert "2 dead letters" in call("replay", "--destination", "nas", "--reason", "b") and waiting(gw) == 3
    assert "no dead letter of that kind" in call("replay", "--destination", "nas", code=1)
    assert replay_forwards(gw, "admin", reason="a") == 1 and waiting(gw) == 4
    with pytest.raises(NotFound):
        replay_forwards(gw, "admin")
    assert replay_forwards(gw, "admin", everything=True) == 2 and waiting(gw) == 6
    assert gw.index.forward_get(second).state is gw.index.forward_get(third).state is ForwardState.WAITING
    gw.close()
