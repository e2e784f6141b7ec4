"""What goes to a destination under the policy: envelopes, viewable stego objects, fallbacks, and what is never sent."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from pydicom import dcmread
from pynetdicom.sop_class import CTImageStorage, RawDataStorage  # type: ignore[attr-defined]

from gateway.accept import accept_instance
from gateway.audit import tail
from gateway.bootstrap import Gateway, build
from gateway.errors import IntegrityError
from gateway.instance import ForwardState
from gateway.jobs import MemoryQueue
from gateway.settings import Destination, Settings
from stego.errors import SealError
from tests.object_makers import IDENTITY, image, noisy
from tests.unit.test_worker_runtime_forward import Peer
from tests.weightfiles import without_weights
from worker import represent
from worker.delivery import forward_instance
from worker.indexing import index_instance
from worker.pipeline import process_instance
from worker.rebind import rebind
from worker.sealing import open_wraps
from worker.shred import find_patient, shred
from worker.stegoobject import make_stego
from worker.stegoread import open_stego
from worker.sweep import release_spool, sweep_once
from worker.verify import Verifier, VerifyReport, check_envelope, check_stego_object

RULE = """
version = 1
[[delivery]]
name = "view"
destination = "viewer"
representation = "{mode}"
unsuitable = {unsuitable}
"""


class Prover:
    """Proves in this process; `verdict` overrules what it finds of stego objects."""

    def __init__(self, gw: Gateway, verdict: VerifyReport | None = None) -> None:
        self._gw = gw
        self.verdict = verdict
        self.asked = 0

    def check(self, envelope: bytes) -> VerifyReport:
        return check_envelope(envelope, self._gw.keys)

    def check_stego(self, part10: bytes, restoration: bytes | None) -> VerifyReport:
        self.asked += 1
        return self.verdict or check_stego_object(part10, restoration, self._gw.keys)


class Site:
    """A gateway with one destination, a folder, and a policy."""

    def __init__(self, folder: Path, policy: str, **destination: Any) -> None:
        self.out = folder / "out"
        self.out.mkdir()
        home = folder / "home"
        home.mkdir()
        (home / "policy.toml").write_text(policy)
        where = destination or {"kind": "filesystem", "path": str(self.out)}
        settings = Settings(
            home=home, watermark_bytes=0, destinations=(Destination(name="viewer", **where),), forward_max_attempts=2
        )
        self.destination = settings.destinations[0]
        self.gw = build(settings, queue=MemoryQueue())
        self.prover = Prover(self.gw)

    def take_in(self, data: bytes) -> int:
        incoming = self.gw.spool.incoming()
        incoming.write_bytes(data)
        instance_id = accept_instance(self.gw, incoming, source="stow", calling_ae="TEST").row.id
        process_instance(self.gw, self.prover, instance_id, "test-1")  # type: ignore[arg-type]
        return instance_id

    def forward(self, instance_id: int) -> Any:
        [row] = self.gw.index.forwards(instance_id)
        forward_instance(self.gw, row.id, "f-1", self.prover)
        return self.gw.index.forward_get(row.id)

    def sent(self) -> list[bytes]:
        return [Path(file).read_bytes() for file in without_weights(sorted(self.out.rglob("*.dcm")))]


@pytest.fixture
def site(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Site]:
    mode, unsuitable = getattr(request, "param", ("self-contained", '"envelope"'))
    made = Site(tmp_path, RULE.format(mode=mode, unsuitable=unsuitable))
    yield made
    made.gw.close()


def picture(**changes: Any) -> bytes:
    return image([noisy(320, 320)], stored=12, **changes)


@pytest.mark.parametrize(
    "site", [("self-contained", '"envelope"'), ("hidden", '"refuse"')], indirect=True, ids=["self-contained", "hidden"]
)
def test_a_viewable_image_goes_out_and_its_record_is_in_the_archive_first(site: Site) -> None:
    data = picture()
    instance_id = site.take_in(data)
    done = site.forward(instance_id)
    mode = site.gw.policy.delivery[0].representation
    assert (done.state, done.representation, done.reason) == (ForwardState.SENT, mode, None)
    [sent] = site.sent()
    shown = dcmread(BytesIO(sent))
    assert shown.SOPClassUID == CTImageStorage and shown.ImageType[0] == "DERIVED"
    assert shown.pixel_array.shape == (320, 320)
    for word in (IDENTITY["PatientName"], IDENTITY["PatientID"], IDENTITY["SOPInstanceUID"]):
        assert word.encode() not in sent
    [export] = site.gw.index.exports(instance_id=instance_id)
    assert (export.mode, export.stego_uid, export.destination) == (mode, shown.SOPInstanceUID, "viewer")
    assert export.record_key is not None and export.record_digest is not None
    record = site.gw.archive.get(export.record_key, export.record_digest)
    assert open_stego(sent, site.gw.keys, restoration=record).data == data
    assert site.prover.asked == 1
    story = [event["event"] for event in reversed(tail(site.gw.index)) if event["instance_id"] == instance_id]
    assert story[-2:] == ["stego-made", "forwarded"]


def test_the_rest_may_ride_inline(tmp_path: Path) -> None:
    site = Site(tmp_path, RULE.format(mode="self-contained", unsuitable='"refuse"') + 'restoration = "inline"\n')
    data = picture()
    instance_id = site.take_in(data)
    assert site.forward(instance_id).state is ForwardState.SENT
    [sent] = site.sent()
    assert open_stego(sent, site.gw.keys).data == data
    [export] = site.gw.index.exports(instance_id=instance_id)
    assert export.record_key is None and export.digest is not None
    assert len(without_weights(site.gw.archive.keys())) == 1  # the archive object
    site.gw.close()


@pytest.mark.parametrize(
    ("policy", "state", "representation"),
    [(("hidden", '"envelope"'), ForwardState.SENT, "envelope"),
     (("hidden", '["self-contained", "refuse"]'), ForwardState.DEAD, None),
     (("self-contained", '"envelope"'), ForwardState.SENT, "envelope")],
)  # fmt: skip
def test_what_cannot_carry_goes_as_the_policy_says_with_the_reason(
    tmp_path: Path, policy: tuple[str, str], state: ForwardState, representation: str | None
) -> None:
    site = Site(tmp_path, RULE.format(mode=policy[0], unsuitable=policy[1]))
    instance_id = site.take_in(picture(BurnedInAnnotation="YES"))
    done = site.forward(instance_id)
    assert (done.state, done.representation, done.reason) == (state, representation, "burned-in")
    assert site.gw.index.exports(instance_id=instance_id) == []
    row = site.gw.index.get(instance_id)
    if state is ForwardState.SENT:
        assert site.sent() == [site.gw.archive.get(str(row.archive_key), str(row.archive_digest))]
    else:
        assert site.sent() == []
        assert site.gw.index.alerts()[0].kind == "dead-letter"
    site.gw.close()


def test_the_second_form_is_tried_before_the_third(tmp_path: Path) -> None:
    site = Site(tmp_path, RULE.format(mode="hidden", unsuitable='["self-contained", "envelope"]'))
    instance_id = site.take_in(image([noisy(320, 320, noise=3)], stored=12))  # too smooth to hide in
    done = site.forward(instance_id)
    assert (done.representation, done.reason) == ("self-contained", "smooth")
    assert [export.mode for export in site.gw.index.exports(instance_id=instance_id)] == ["self-contained"]
    site.gw.close()


@pytest.mark.parametrize(
    ("verdict", "reason"),
    [(VerifyReport(False, "seal-refused"), "unproven-seal-refused"),
     (VerifyReport(True, "", "0" * 64, "0" * 64), "unproven-other-object")],
)  # fmt: skip
def test_what_does_not_open_to_what_was_received_is_never_sent(site: Site, verdict: VerifyReport, reason: str) -> None:
    site.prover.verdict = verdict
    instance_id = site.take_in(picture())
    done = site.forward(instance_id)
    assert (done.state, done.reason, done.representation) == (ForwardState.DEAD, reason, None)
    assert site.sent() == []
    assert {alert.kind for alert in site.gw.index.alerts()} == {"stego-unproven", "dead-letter"}
    [export] = site.gw.index.exports(instance_id=instance_id)
    assert export.digest is None
    site.prover.verdict = None  # mended: a replay makes the very same object
    site.gw.index.forward_replay(done.id, "admin")
    assert site.forward(instance_id).state is ForwardState.SENT
    assert site.gw.index.exports(instance_id=instance_id)[0].object_id == export.object_id


def test_every_retry_sends_the_same_object_wherever_the_last_try_ended(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    instance_id = site.take_in(picture())
    row = site.gw.index.get(instance_id)
    seen = []
    for owner, name in ((represent, "make_stego"), (represent, "_archive_restoration"), (represent, "_prove")):
        real = getattr(owner, name)

        def killed(*args: Any, real: Any = real, **kwargs: Any) -> Any:
            real(*args, **kwargs)
            raise KeyboardInterrupt

        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(owner, name, killed)
            represent.represent(site.gw, row, site.destination, site.prover, "f-1")
    for _ in range(3):
        parcel = represent.represent(site.gw, row, site.destination, site.prover, "f-1")
        seen.append((parcel.name, parcel.data))
    assert len(set(seen)) == 1
    assert len(site.gw.index.exports(instance_id=instance_id)) == 1
    assert len(without_weights(site.gw.archive.keys())) == 2  # the archive object and one restoration record
    assert site.prover.asked == 2  # in the try that was killed after it, and before the first that was recorded


def test_a_try_that_another_release_left_unfinished_is_begun_anew(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    instance_id = site.take_in(picture())
    row = site.gw.index.get(instance_id)
    real = represent.make_stego

    def older(data: bytes, *args: Any, **kwargs: Any) -> Any:
        made = real(data, *args, **kwargs)
        assert made.restoration is not None
        return replace(made, restoration=made.restoration + b"\0\0")

    with monkeypatch.context() as patch, pytest.raises(IntegrityError, match="was not sent"):
        patch.setattr(represent, "make_stego", older)
        site.prover.verdict = VerifyReport(False, "seal-refused")
        represent.represent(site.gw, row, site.destination, site.prover, "f-1")
    site.prover.verdict = None
    [begun] = site.gw.index.exports(instance_id=instance_id)
    assert represent.represent(site.gw, row, site.destination, site.prover, "f-1").representation == "self-contained"
    [export] = site.gw.index.exports(instance_id=instance_id)
    assert export.object_id != begun.object_id and export.digest is not None


def test_a_retry_that_would_be_another_object_is_refused(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    instance_id = site.take_in(picture())
    row = site.gw.index.get(instance_id)
    represent.represent(site.gw, row, site.destination, site.prover, "f-1")

    def other(data: bytes, *args: Any, **kwargs: Any) -> Any:
        return make_stego(picture(), *args, **{**kwargs, "secrets": None})

    monkeypatch.setattr(represent, "make_stego", other)
    with pytest.raises(IntegrityError) as caught:
        represent.represent(site.gw, row, site.destination, site.prover, "f-1")
    assert caught.value.reason == "stego-export-differs"


def test_compressed_input_is_proven_by_its_native_form(site: Site) -> None:
    from imagecodecs import jpegls_encode

    from tests.object_makers import JPEG_LS, compressed

    frame = noisy(192, 192)
    data = compressed([frame], [jpegls_encode(frame)], syntax=JPEG_LS, stored=12)
    instance_id = site.take_in(data)
    done = site.forward(instance_id)
    assert (done.state, done.representation, done.reason) == (ForwardState.SENT, "self-contained", None)


@pytest.mark.parametrize(
    "site", [("self-contained", '"envelope"'), ("hidden", '"refuse"')], indirect=True, ids=["self-contained", "hidden"]
)
def test_what_was_sent_tells_nobody_anything_once_the_patient_was_shredded(site: Site) -> None:
    instance_id = site.take_in(picture())
    site.forward(instance_id)
    index_instance(site.gw, instance_id)
    [sent] = site.sent()
    [export] = site.gw.index.exports(instance_id=instance_id)
    record = site.gw.archive.get(str(export.record_key), str(export.record_digest))
    wraps = [bytes.fromhex(wrap) for wrap in export.wraps]
    assert open_wraps(wraps, site.gw.keys.find_kek).key and rebind(site.gw, sent).data == picture()
    sweep_once(site.gw, (release_spool,))
    shred(site.gw, find_patient(site.gw, IDENTITY["PatientID"]), actor="test", reason="asked")
    for way in (
        lambda: open_stego(sent, site.gw.keys, restoration=record),
        lambda: rebind(site.gw, sent),
        lambda: rebind(site.gw, record),
    ):
        with pytest.raises(IntegrityError) as caught:
            way()
        assert caught.value.reason == "seal-refused"
    with pytest.raises(SealError):
        open_wraps(wraps, site.gw.keys.find_kek)
    assert site.gw.index.exports(instance_id=instance_id)[0].wraps == ()


def test_released_objects_are_made_from_the_archive(site: Site) -> None:
    data = picture()
    instance_id = site.take_in(data)
    site.gw.spool.remove(site.gw.index.get(instance_id).digest)
    assert site.forward(instance_id).representation == "self-contained"
    [export] = site.gw.index.exports(instance_id=instance_id)
    record = site.gw.archive.get(str(export.record_key), str(export.record_digest))
    assert open_stego(site.sent()[0], site.gw.keys, restoration=record).data == data


def test_a_node_is_offered_the_image_and_the_envelope_class(tmp_path: Path) -> None:
    peer = Peer(CTImageStorage)
    site = Site(
        tmp_path, RULE.format(mode="self-contained", unsuitable='"envelope"'), kind="dicom", port=peer.port,
        ae_title="PEER",
    )  # fmt: skip
    first, second = site.take_in(picture()), site.take_in(picture(SOPInstanceUID="1.2.3.4"))
    assert site.forward(first).representation == "self-contained"
    assert site.gw.index.forwards(second)[0].state is ForwardState.SENT  # drained in the same go
    assert (len(peer.kept), peer.associations) == (2, 1)
    third = site.take_in(picture(BurnedInAnnotation="YES", SOPInstanceUID="1.2.3.5"))
    done = site.forward(third)  # an envelope, and this node takes no Raw Data
    assert (done.state, done.reason) == (ForwardState.DEAD, "no-presentation-context")
    peer.close()
    site.gw.close()


def test_a_node_that_takes_no_images_says_so(tmp_path: Path) -> None:
    peer = Peer(RawDataStorage)
    site = Site(
        tmp_path, RULE.format(mode="self-contained", unsuitable='"refuse"'), kind="dicom", port=peer.port,
        ae_title="PEER",
    )  # fmt: skip
    done = site.forward(site.take_in(picture()))
    assert (done.state, done.reason) == (ForwardState.DEAD, "no-presentation-context")
    peer.close()
    site.gw.close()


def test_the_proving_process_opens_stego_objects(site: Site) -> None:
    instance_id = site.take_in(picture())
    row = site.gw.index.get(instance_id)
    with Verifier(site.gw.settings.keys_dir) as verifier:
        parcel = represent.represent(site.gw, row, site.destination, verifier, "f-1")
        [export] = site.gw.index.exports(instance_id=instance_id)
        record = site.gw.archive.get(str(export.record_key), str(export.record_digest))
        assert verifier.check_stego(parcel.data, record).sha256 == row.digest
        assert verifier.check_stego(parcel.data, None).reason == "restoration-missing"
        damaged = bytearray(parcel.data)
        damaged[-5000] ^= 1
        refused = verifier.check_stego(bytes(damaged), record)
        assert (refused.ok, refused.sha256) == (False, "") and refused.reason
        assert verifier.check_stego(b"nonsense", None).ok is False
        envelope = site.gw.archive.get(str(row.archive_key), str(row.archive_digest))
        assert verifier.check(envelope).sha256 == row.digest


def test_a_replay_after_a_shredding_ends_and_holds_nobody_up(site: Site) -> None:
    gw, first = site.gw, site.take_in(picture())
    [row] = gw.index.forwards(first)
    index_instance(gw, first)
    gw.index.forward_claim(row.id, "f-0", 60.0)
    gw.index.forward_failed(row.id, "f-0", "refused", due_at=None)  # a dead letter
    shred(gw, find_patient(gw, IDENTITY["PatientID"]), actor="admin", reason="erasure-request")
    gw.index.forward_replay(row.id, "admin")
    done = site.forward(first)
    assert done.state is ForwardState.DEAD and done.reason == "identity-shredded"


def test_a_rotation_between_two_tries_leaves_the_object_what_it_was(site: Site) -> None:
    instance_id = site.take_in(picture())
    row = site.gw.index.get(instance_id)
    first = represent.represent(site.gw, row, site.destination, site.prover, "f-1")
    created = site.gw.index.exports(instance_id=instance_id)[0].created_at
    time.sleep(max(0.0, created + 1.1 - time.time()))  # keys' ages are in whole seconds
    for kind in ("sign", "stego", "pseudo", "kek"):
        site.gw.keys.rotate(kind)
    again = represent.represent(site.gw, row, site.destination, site.prover, "f-1")
    assert (again.name, again.data) == (first.name, first.data)
    assert open_stego(again.data, site.gw.keys, restoration=_record(site, instance_id)).data == picture()


def _record(site: Site, instance_id: int) -> bytes:
    [export] = site.gw.index.exports(instance_id=instance_id)
    return site.gw.archive.get(str(export.record_key), str(export.record_digest))
