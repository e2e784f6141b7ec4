"""Viewable copies: the right syntax, the right pixels, one identity a destination, and destinations apart."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator, Sequence
from hashlib import sha256
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from pydicom import dcmread
from pynetdicom import AE, evt

from gateway.accept import accept_instance
from gateway.archive import archive_key
from gateway.audit import tail
from gateway.bootstrap import Gateway, build
from gateway.circuit import read_circuit
from gateway.errors import Unsupported
from gateway.index import CandidateFacts, ForwardRow
from gateway.instance import Form, ForwardState
from gateway.jobs import MemoryQueue
from gateway.part10 import peek
from gateway.policy import DeliveryRule
from gateway.probe_result import RAW_DATA, Finding, ProbeResult, Verdict
from gateway.settings import Destination, Settings
from gateway.transfer_syntaxes import HTJ2K, JPEG_2000, JPEG_LS, JPEG_XL, RLE
from tests.fakes import NoStego
from tests.object_makers import EXPLICIT, FACTS, IDENTITY, IMPLICIT, image, noisy, packaged
from tests.running import until
from worker.candidate import build_passthrough
from worker.compare import difference
from worker.delivery import forward_instance
from worker.routing import destinations_of
from worker.viewable import candidates

CT = "1.2.840.10008.5.1.4.1.1.2"
VIEWABLE = 'version=1\n[[delivery]]\nname="v"\nrepresentation="viewable"\n'
DEIDENTIFIED = 'version=1\n[[delivery]]\nname="d"\nrepresentation="deidentified"\n'


class Viewer:
    """A C-STORE SCP for CT in some syntaxes, that may be made to wait."""

    def __init__(self, *syntaxes: str) -> None:
        self.kept: list[tuple[str, str, bytes]] = []
        self.entered, self.go = threading.Event(), threading.Event()
        self.go.set()
        ae = AE(ae_title="VIEWER")
        for sop_class in (CT, RAW_DATA):
            ae.add_supported_context(sop_class, list(syntaxes))
        self._server: Any = ae.start_server(("127.0.0.1", 0), block=False, evt_handlers=[(evt.EVT_C_STORE, self._keep)])
        self.destination = Destination(name="viewer", port=int(self._server.server_address[1]), ae_title="VIEWER")

    def _keep(self, event: Any) -> int:
        self.entered.set()
        self.go.wait(60)
        syntax = str(event.context.transfer_syntax)
        self.kept.append((str(event.request.AffectedSOPInstanceUID), syntax, event.request.DataSet.getvalue()))
        return 0

    def close(self) -> None:
        self.go.set()
        self._server.shutdown()


@pytest.fixture
def viewer(request: pytest.FixtureRequest) -> Iterator[Viewer]:
    made = Viewer(*getattr(request, "param", (JPEG_2000, EXPLICIT)))
    yield made
    made.close()


def gateway(home: Path, policy: str, *destinations: Destination) -> Gateway:
    home.mkdir(exist_ok=True)
    (home / "policy.toml").write_text(policy)
    settings = Settings(home=home, watermark_bytes=0, destinations=destinations, network_timeout_seconds=60.0)
    return build(settings, queue=MemoryQueue())


def archive(gw: Gateway, data: bytes, calling_ae: str = "CT1") -> int:
    """Take a file in, archive it whole (no codec), and route it."""
    incoming = gw.spool.incoming()
    incoming.write_bytes(data)
    number = accept_instance(gw, incoming, source="dimse", calling_ae=calling_ae).row.id
    made = build_passthrough(data, FACTS, gw.keys, "test").envelope
    digest, uid = sha256(made).hexdigest(), str(peek(made).sop_instance_uid)
    assert gw.index.claim(number, "t", 60.0) is not None
    gw.index.set_candidate(number, "t", CandidateFacts(digest, len(made), Form.PASSTHROUGH, "test", uid))
    gw.index.set_verified(number, "t")
    gw.archive.put(archive_key(uid), made, digest)
    names = destinations_of(gw, gw.index.get(number))
    gw.index.set_archived(number, "t", archive_key(uid), digest, len(made), names)
    return number


def forward(gw: Gateway, number: int) -> ForwardRow:
    [row] = gw.index.forwards(number)
    forward_instance(gw, row.id, "f-1", NoStego())
    return gw.index.forward_get(row.id)


def picture(**changes: Any) -> bytes:
    return image([noisy(64, 64)], stored=12, **changes)


def probed(place: Destination, **verdicts: Verdict) -> ProbeResult:
    """A probe of CT (and, as `raw`, of envelopes) by names of syntaxes."""
    uids = {"xl": JPEG_XL, "ls": JPEG_LS, "j2k": JPEG_2000, "ht": HTJ2K, "le": EXPLICIT, "implicit": IMPLICIT}
    findings = [Finding(CT, uids[name], name, "", {}, word) for name, word in verdicts.items() if name != "raw"]
    if "raw" in verdicts:
        findings.append(Finding(RAW_DATA, EXPLICIT, "envelope", "", {}, verdicts["raw"]))
    return ProbeResult(place.name, place.place, time.time(), "test", "", {}, tuple(findings))


# --- which syntaxes ---

RULE = DeliveryRule(name="r", representation="viewable")
HERE = Destination(name="viewer")


@pytest.mark.parametrize(
    ("source", "syntax", "probe", "expected"),
    [
        (EXPLICIT, (), None, [JPEG_LS, JPEG_2000, EXPLICIT, IMPLICIT]),
        (RLE, (), None, [RLE, JPEG_LS, JPEG_2000, EXPLICIT, IMPLICIT]),
        (EXPLICIT, ("htj2k", "explicit-le"), None, [HTJ2K, EXPLICIT]),
        (RLE, ("explicit-le",), None, [EXPLICIT, RLE]),
        (EXPLICIT, (), {"xl": "proven", "ls": "lost", "j2k": "proven", "ht": "proven", "le": "proven"},
         [JPEG_XL, JPEG_2000, HTJ2K, EXPLICIT, IMPLICIT]),
        (EXPLICIT, (), {"xl": "stored", "ls": "stored", "ht": "altered"}, [JPEG_LS, JPEG_2000, EXPLICIT, IMPLICIT]),
        (EXPLICIT, ("jpeg-ls", "explicit-le"), {"ls": "refused"}, [EXPLICIT]),
    ],
)  # fmt: skip
def test_a_copy_goes_out_in_what_was_proven_else_in_what_is_widely_read(
    source: str, syntax: Any, probe: dict[str, Verdict] | None, expected: Sequence[str]
) -> None:
    rule = RULE.model_copy(update={"syntax": syntax})
    found = candidates(CT, source, rule, probed(HERE, **probe) if probe is not None else None)
    assert list(found) == expected


def test_where_everything_was_refuted_nothing_is_sent() -> None:
    probe = probed(HERE, ls="lost", j2k="refused", le="altered", implicit="lost")
    with pytest.raises(Unsupported, match="refuted"):
        candidates(CT, EXPLICIT, RULE, probe)


def test_a_class_that_was_not_probed_is_judged_by_those_that_were_if_they_agree() -> None:
    findings = [Finding(str(n), JPEG_LS, "", "", {}, word) for n, word in enumerate(("lost", "refused"))]
    findings += [Finding(str(n), EXPLICIT, "", "", {}, word) for n, word in enumerate(("lost", "proven"))]
    probe = ProbeResult("d", "p", 0.0, "", "", {}, tuple(findings))
    assert probe.verdict("9", JPEG_LS) == "lost" and probe.verdict("9", EXPLICIT) is None
    assert probe.verdict(RAW_DATA, EXPLICIT) is None and probe.verdict("1", EXPLICIT) == "proven"
    assert ProbeResult.load(probe.dump()) == probe


# --- what arrives ---


def test_the_original_arrives_in_the_best_syntax_that_the_viewer_accepts(tmp_path: Path, viewer: Viewer) -> None:
    gw = gateway(tmp_path / "home", VIEWABLE, viewer.destination)
    data = picture()
    done = forward(gw, archive(gw, data))
    assert (done.state, done.representation, done.reason) == (ForwardState.SENT, "viewable", None)
    [(uid, syntax, dataset)] = viewer.kept
    assert (uid, syntax) == (IDENTITY["SOPInstanceUID"], JPEG_2000)
    assert (done.sent_class, done.sent_uid, done.sent_syntax) == (CT, uid, JPEG_2000)
    assert IDENTITY["PatientID"].encode() in dataset
    gw.close()


def test_what_came_compressed_stays_so_where_that_is_taken(tmp_path: Path) -> None:
    gw = gateway(tmp_path / "home", VIEWABLE, folder(tmp_path))
    data = packaged("MR_small_RLE.dcm")
    assert forward(gw, archive(gw, data)).sent_syntax == RLE
    assert files(tmp_path) == [data]
    gw.close()


def folder(tmp_path: Path) -> Destination:
    (tmp_path / "out").mkdir(exist_ok=True)
    return Destination(name="viewer", kind="filesystem", path=str(tmp_path / "out"))


def files(tmp_path: Path) -> list[bytes]:
    return [path.read_bytes() for path in sorted((tmp_path / "out").rglob("*.dcm"))]


def test_a_lossy_original_that_the_viewer_does_not_take_is_a_dead_letter(tmp_path: Path, viewer: Viewer) -> None:
    gw = gateway(tmp_path / "home", VIEWABLE, viewer.destination)
    done = forward(gw, archive(gw, packaged("JPEG-lossy.dcm")))
    assert done.state is ForwardState.DEAD and viewer.kept == []
    gw.close()


def test_a_deidentified_copy_has_the_pixels_and_nothing_of_the_patient(tmp_path: Path) -> None:
    policy = DEIDENTIFIED + 'syntax = ["jpeg-ls", "explicit-le"]\n'
    gw = gateway(tmp_path / "home", policy, folder(tmp_path))
    data = picture()
    done = forward(gw, archive(gw, data))
    assert (done.representation, done.sent_syntax) == ("deidentified", JPEG_LS)
    [sent] = files(tmp_path)
    shown, source = dcmread(BytesIO(sent)), dcmread(BytesIO(data))
    assert shown.PatientIdentityRemoved == "YES" and (shown.pixel_array == source.pixel_array).all()
    for keyword in ("PatientName", "PatientID", "StudyInstanceUID", "SOPInstanceUID", "InstitutionName"):
        assert IDENTITY[keyword].encode() not in sent, keyword
    assert difference(data, sent).startswith("differs-at")
    gw.close()


def test_an_image_that_cannot_be_deidentified_goes_as_an_envelope_and_says_why(tmp_path: Path) -> None:
    gw = gateway(tmp_path / "home", DEIDENTIFIED, folder(tmp_path))
    done = forward(gw, archive(gw, picture(BurnedInAnnotation="YES")))
    assert (done.state, done.representation, done.reason) == (ForwardState.SENT, "envelope", "burned-in")
    assert done.sent_class == RAW_DATA
    gw.close()


# --- one identity for each study at each place ---


def test_a_study_that_went_under_a_pseudonym_is_not_continued_under_its_name(tmp_path: Path) -> None:
    gw = gateway(tmp_path / "home", "version=1\n", folder(tmp_path))
    assert forward(gw, archive(gw, picture())).representation == "envelope"
    gw.close()
    gw = gateway(tmp_path / "home", VIEWABLE, folder(tmp_path))
    second = archive(gw, picture(SOPInstanceUID=IDENTITY["SOPInstanceUID"][:-1] + "9"))
    done = forward(gw, second)
    assert (done.state, done.reason) == (ForwardState.DEAD, "mixed-identity")
    other = picture(SOPInstanceUID=IDENTITY["SOPInstanceUID"][:-1] + "8", StudyInstanceUID="1.2.3.4")
    assert forward(gw, archive(gw, other)).representation == "viewable"
    gw.close()


# --- what a probe refuted is not used ---


def test_a_refuted_envelope_is_not_sent_until_the_place_is_another(tmp_path: Path) -> None:
    place = folder(tmp_path)
    gw = gateway(tmp_path / "home", "version=1\n", place)
    gw.index.probe_put(probed(place, raw="lost"), "test")
    number = archive(gw, picture())
    done = forward(gw, number)
    assert (done.state, done.reason, files(tmp_path)) == (ForwardState.DEAD, "probe-refuted", [])
    assert "dead-letter" in [event["event"] for event in tail(gw.index)]
    gw.index.probe_put(probed(place, raw="proven"), "test")
    assert gw.index.dead_letters("viewer", "probe-refuted") == [done.id] and gw.index.dead_letters("other") == []
    gw.index.forward_replay(done.id, "admin")
    assert forward(gw, number).state is ForwardState.SENT
    assert gw.index.probe_of("viewer", "another place") is None
    gw.close()


def test_a_refuted_syntax_gives_way_to_the_next(tmp_path: Path) -> None:
    place = folder(tmp_path)
    gw = gateway(tmp_path / "home", VIEWABLE, place)
    gw.index.probe_put(probed(place, ls="altered", j2k="lost", xl="refused", le="proven"), "test")
    assert forward(gw, archive(gw, picture())).sent_syntax == EXPLICIT
    gw.close()


# --- routing, and destinations apart ---


def test_only_where_a_route_leads_is_anything_sent(tmp_path: Path) -> None:
    policy = (
        "version=1\n[[route]]\nname='qa'\ncalling_ae='QA*'\ndestinations=[]\n"
        "[[route]]\nname='chest'\nbody_part='CHEST'\ndestinations='b'\n"
    )
    places = [Destination(name=name, port=number) for number, name in enumerate("ab", 1)]
    gw = gateway(tmp_path / "home", policy, *places, Destination(name="c", move=True, forward=False))

    def sent(number: int, **given: Any) -> list[str]:
        calling = given.pop("calling_ae", "CT1")
        data = picture(SOPInstanceUID=f"1.2.{number}", **given)
        return sorted(row.destination for row in gw.index.forwards(archive(gw, data, calling)))

    assert sent(1) == ["a", "b"]
    assert sent(2, calling_ae="QA7") == []
    assert sent(3, BodyPartExamined="CHEST") == ["b"]
    gw.close()


def test_one_dead_one_slow_one_fine(tmp_path: Path, nobody_port: int) -> None:
    slow = Viewer(EXPLICIT)
    slow.go.clear()
    dead = Destination(name="dead", port=nobody_port)
    fine = Destination(name="fine", kind="filesystem", path=str(tmp_path))
    gw = gateway(tmp_path / "home", "version=1\n", dead, slow.destination, fine)
    rows = {row.destination: row.id for row in gw.index.forwards(archive(gw, picture()))}
    thread = threading.Thread(target=forward_instance, args=(gw, rows["viewer"], "f-1", NoStego()))
    thread.start()
    assert slow.entered.wait(60)
    began = time.time()
    for name in ("dead", "fine"):  # while the slow one keeps its sender waiting
        forward_instance(gw, rows[name], "f-2", NoStego())
    states = {name: gw.index.forward_get(number).state for name, number in rows.items()}
    assert states == {"dead": ForwardState.WAITING, "viewer": ForwardState.WAITING, "fine": ForwardState.SENT}
    circuit = read_circuit(gw.settings.run_dir, "dead")
    assert circuit.open_until > began and (circuit.failures, circuit.reason) == (1, "unreachable")
    assert not read_circuit(gw.settings.run_dir, "fine").is_open
    slow.go.set()
    thread.join(60)
    assert until(lambda: gw.index.forward_get(rows["viewer"]).state is ForwardState.SENT)
    slow.close()
    gw.close()


def test_a_viewer_out_of_reach_is_no_fault_of_the_object(tmp_path: Path, nobody_port: int) -> None:
    gw = gateway(tmp_path / "home", VIEWABLE, Destination(name="viewer", port=nobody_port))
    done = forward(gw, archive(gw, picture()))
    assert (done.state, done.reason, done.attempts) == (ForwardState.WAITING, "unreachable", 1)
    gw.close()


def test_a_credential_that_cannot_be_read_opens_the_circuit_and_costs_no_attempt(tmp_path: Path) -> None:
    web = Destination(name="viewer", kind="stow", url="http://127.0.0.1:1/w", token_file=tmp_path / "token")
    gw = gateway(tmp_path / "home", VIEWABLE, web)
    done = forward(gw, archive(gw, picture()))
    assert (done.state, done.reason, done.attempts) == (ForwardState.WAITING, "credential-unreadable", 0)
    assert json.loads((gw.settings.run_dir / "forward-viewer.lock").read_text())["reason"] == "credential-unreadable"
    gw.close()
