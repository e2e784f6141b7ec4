"""Restore certificates: made by the gateway, checked without it, and what every kind of tampering comes to."""

from __future__ import annotations

import base64
import io
import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import pydicom
import pytest
from fastapi.testclient import TestClient
from typer.testing import CliRunner

from gateway import audit
from gateway.accept import accept_instance
from gateway.bootstrap import Gateway, build
from gateway.certificate import certify_instance, certify_study
from gateway.certificate_format import SKEW_SECONDS, BadCertificate, canonical, open_certificate, read_trusted
from gateway.errors import IntegrityError, InvalidInstance, Unavailable
from gateway.index_rows import InstanceRow
from gateway.jobs import MemoryQueue
from gateway.keystate import Key, new_key
from gateway.settings import Settings
from gateway.tokens import mint_token
from palimpsest.check import check_archive, check_files, read_certificate
from palimpsest.cli import app
from service.api import create_app
from tests.object_makers import packaged
from tests.proving import InProcess
from worker.indexing import index_instance
from worker.pipeline import process_instance
from worker.recheck import recheck
from worker.shred import find_patient, shred
from worker.sweep import release_spool

pytestmark = pytest.mark.integration

STUDY = "1.2.826.0.1.3680043.10.7.1"
NAMES = ("CT_small.dcm", "MR_small_RLE.dcm", "examples_palette.dcm")
Document = dict[str, Any]


def made_file(name: str, number: int, *, patient: str = "CERT-1", study: str = STUDY) -> bytes:
    ds = pydicom.dcmread(io.BytesIO(packaged(name)))
    ds.PatientID, ds.PatientName, ds.StudyInstanceUID = patient, "Certified^One", study
    ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = f"{study}.{number}"
    out = io.BytesIO()
    ds.save_as(out)
    return out.getvalue()


def take_in(gw: Gateway, data: bytes) -> InstanceRow:
    incoming = gw.spool.incoming()
    incoming.write_bytes(data)
    row = accept_instance(gw, incoming, source="stow", calling_ae="TEST").row
    index_instance(gw, row.id)
    return row


def archive(gw: Gateway, data: bytes) -> InstanceRow:
    row = take_in(gw, data)
    process_instance(gw, InProcess(gw.keys), row.id, "test")  # type: ignore[arg-type]
    return gw.index.get(row.id)


@dataclass(frozen=True)
class Site:
    """A gateway whose spool was released, the received files in a folder, and the owner's copy of the public keys."""

    gw: Gateway
    files: list[Path]
    rows: list[InstanceRow]
    public: Path

    def objects(self, folder: Path) -> list[Path]:
        """Copies of the archive objects."""
        paths = [folder / f"{row.id}.object" for row in self.rows]
        for path, row in zip(paths, self.rows, strict=True):
            path.write_bytes(self.gw.archive.get(str(row.archive_key), str(row.archive_digest)))
        return paths


def open_site(folder: Path, names: tuple[str, ...] = NAMES) -> Site:
    gw = build(Settings(home=folder / "home", watermark_bytes=0), queue=MemoryQueue())
    received = folder / "received"
    received.mkdir()
    files, rows = [], []
    for number, name in enumerate(names, 1):
        files.append(received / f"{number}.dcm")
        files[-1].write_bytes(made_file(name, number))
        rows.append(archive(gw, files[-1].read_bytes()))
    release_spool(gw)
    gw.keys.export_public(folder / "public.json")
    return Site(gw, files, [gw.index.get(row.id) for row in rows], folder / "public.json")


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    site = open_site(tmp_path_factory.mktemp("site"))
    yield site
    site.gw.close()


@pytest.fixture
def own(tmp_path: Path) -> Iterator[Site]:
    site = open_site(tmp_path, NAMES[:1])
    yield site
    site.gw.close()


def opened(site: Site, data: bytes) -> Any:
    return open_certificate(data, read_trusted(site.public.read_bytes()), site.gw.index.now())


def call(*arguments: object, code: int = 0) -> str:
    result = CliRunner().invoke(app, [str(each) for each in arguments])
    assert result.exit_code == code, result.output
    return result.output


# --- what it says ---


def test_a_study_certificate_says_what_the_index_knows(shared: Site) -> None:
    found = opened(shared, certify_study(shared.gw, STUDY, actor="test"))
    assert (found.signer, found.trusted_by, found.statement["subject"]) == ("certify-1", "certify-1", "study")
    trail = {event["seq"]: event for event in audit.tail(shared.gw.index, 1000)}
    assert trail[found.statement["audit"]["seq"]]["hash"] == found.statement["audit"]["hash"]
    for entry, path, row in zip(found.instances, shared.files, shared.rows, strict=True):
        assert entry["received"]["sha256"] == sha256(path.read_bytes()).hexdigest()
        assert entry["received"]["sop_instance_uid"] == row.sop_uid
        assert entry["archived"]["sha256"] == row.archive_digest and entry["archived"]["form"] == row.form
        proven = entry["proven"]
        assert (trail[proven["audit"]["seq"]]["event"], trail[proven["audit"]["seq"]]["instance_id"]) == (
            "verified", row.id
        )  # fmt: skip
        assert proven["audit"]["hash"] == trail[proven["audit"]["seq"]]["hash"]
        assert proven["software"].startswith("palimpsest") and entry["rechecked"] is None
    coded = next(entry for entry in found.instances if entry["archived"]["coder"] == "learned")
    assert coded["proven"]["decoders"] == ["numba"] and coded["proven"]["exact"] == "file"
    assert coded["proven"]["weights_sha256"] and all(len(each) == 64 for each in coded["proven"]["weights_sha256"])
    rle = found.instances[1]
    assert (rle["proven"]["exact"] == "file") is (rle["proven"]["restored_sha256"] == rle["received"]["sha256"])
    secrets = [json.dumps(base64.b64encode(key.secret).decode()) for key in shared.gw.keys.certify_keys()]
    assert not any(secret in json.dumps(dict(found.statement)) for secret in secrets)


def test_nothing_is_certified_before_it_is_archived(tmp_path: Path) -> None:
    gw = build(Settings(home=tmp_path / "home", watermark_bytes=0), queue=MemoryQueue())
    row = take_in(gw, made_file(NAMES[0], 1))
    for issue in (lambda: certify_instance(gw, row.id, actor="t"), lambda: certify_study(gw, STUDY, actor="t")):
        with pytest.raises(Unavailable, match="1 of 1"):
            issue()
    assert "certified" not in {event["event"] for event in audit.tail(gw.index)}
    gw.close()


def test_who_may_ask_for_it(shared: Site) -> None:
    number = shared.rows[0].id
    with TestClient(create_app(shared.gw), raise_server_exceptions=False) as web:
        for path in (f"/api/instances/{number}/certificate", f"/api/studies/{STUDY}/certificate"):
            assert web.get(path).status_code == 401
            for role, expected in (("clinician", 200), ("service", 200), ("auditor", 200), ("admin", 403)):
                headers = {"Authorization": f"Bearer {mint_token(shared.gw, role, 'who')}"}
                answer = web.get(path, headers=headers)
                assert answer.status_code == expected
                if expected == 200:
                    assert answer.headers["cache-control"] == "no-store"
                    assert opened(shared, answer.content).statement["count"] == (1 if "instances" in path else 3)
                    events = audit.tail(shared.gw.index, 10)  # a refusal of before may be written after it
                    assert next(each for each in events if each["event"] == "certified")["actor"] == "who"
        headers = {"Authorization": f"Bearer {mint_token(shared.gw, 'clinician', 'who')}"}
        for path, expected in (
            ("instances/x", 404),
            ("instances/99999", 404),
            ("studies/1.9", 404),
            ("studies/a", 400),
        ):
            assert web.get(f"/api/{path}/certificate", headers=headers).status_code == expected


# --- the commands ---


def test_certify_anew_and_check_without_a_gateway(shared: Site, tmp_path: Path) -> None:
    home, paper = shared.gw.settings.home, tmp_path / "certificate.json"
    assert not list(shared.gw.spool)
    assert "3 instances certified, decoded anew" in call(
        "certify", "--study", STUDY, "--recheck", "--json", paper, "--home", home
    )
    assert paper.stat().st_mode & 0o077 == 0
    entries = opened(shared, paper.read_bytes()).instances
    assert all(each["rechecked"]["restored_sha256"] == each["proven"]["restored_sha256"] for each in entries)
    assert [event["event"] for event in audit.tail(shared.gw.index, 4)] == ["certified", *["rechecked"] * 3]

    objects = shared.objects(tmp_path)
    key = ("--public-key", shared.public)
    told = call("check", paper, *key, "--file", shared.files[0].parent, *[a for o in objects for a in ("--archive", o)])
    assert "authentic      signed by certify-1" in told and told.count("ok   ") == 6 and "decoded anew   3 of 3" in told
    assert "no file was held against it" in call("check", paper, *key)
    assert "MISMATCH  instance" in call("check", paper, *key, "--file", shared.files[0], code=4)
    call("check", paper, *key, "--file", shared.files[0], "--partial")
    assert "not a file of this" in call("check", paper, *key, "--file", objects[0], "--partial", code=4)
    assert "not an archive object" in call("check", paper, *key, "--archive", shared.files[0], code=4)
    call("check", tmp_path / "nothing", *key, code=1)
    paper.write_bytes(paper.read_bytes()[:-40])
    assert "certificate-damaged" in call("check", paper, *key, code=3)


def test_the_reference_decoder_is_named(own: Site, tmp_path: Path) -> None:
    paper = tmp_path / "c.json"
    uid = own.rows[0].sop_uid
    call("certify", uid, "--recheck", "--reference", "--json", paper, "--home", own.gw.settings.home)
    assert opened(own, paper.read_bytes()).instances[0]["rechecked"]["decoders"] == ["numba", "reference"]
    assert json.loads(call("certify", own.rows[0].id, "--home", own.gw.settings.home))["statement"]["count"] == 1
    call("certify", "1.2.3", "--home", own.gw.settings.home, code=1)
    call("certify", "--home", own.gw.settings.home, code=2)


def test_openssl_alone_checks_it(shared: Site, tmp_path: Path) -> None:
    program = shutil.which("openssl")
    if program is None:
        assert os.environ.get("PALIMPSEST_REQUIRE_PEERS") != "1", "openssl is required"
        pytest.skip("openssl is not installed")
    call("keys", "export-public", tmp_path / "key.pem", "--pem", "--home", shared.gw.settings.home)
    document = json.loads(certify_study(shared.gw, STUDY, actor="test"))
    statement, signature = tmp_path / "statement", tmp_path / "signature"
    signature.write_bytes(base64.b64decode(document["signature"]["value"]))
    command = [program, "pkeyutl", "-verify", "-pubin", "-inkey", "key.pem", "-rawin", "-in", "statement"]
    for text, code in ((canonical(document["statement"]), 0), (canonical({**document["statement"], "count": 2}), 1)):
        statement.write_bytes(text)
        done = subprocess.run([*command, "-sigfile", "signature"], cwd=tmp_path, capture_output=True, timeout=60)
        assert (done.returncode, b"Signature Verified Successfully" in done.stdout) == (code, code == 0)
    jq = shutil.which("jq")
    if jq is not None:  # docs/certificate.md says that it makes the same bytes
        (tmp_path / "c.json").write_text(json.dumps(document))
        made = subprocess.run([jq, "-cjS", ".statement", "c.json"], cwd=tmp_path, capture_output=True, check=True)
        assert made.stdout == canonical(document["statement"])
    trusted = read_trusted((tmp_path / "key.pem").read_bytes())
    assert open_certificate(json.dumps(document).encode(), trusted, shared.gw.index.now()).trusted_by == "the key given"


# --- tampering ---


def edited(change: Callable[[Document], object]) -> Callable[[Document], bytes]:
    def apply(document: Document) -> bytes:
        change(document)
        return json.dumps(document).encode()

    return apply


def resigned(document: Document) -> bytes:
    """Signed by a key of the forger's, under the name of ours."""
    key = new_key("certify-1", "certify", "2026-01-01T00:00:00+00:00")
    return forged(document, [key])


def forged(document: Document, keys: list[Key]) -> bytes:
    from gateway.certificate_format import sign_statement

    return sign_statement(document["statement"], keys)


def grafted(document: Document) -> bytes:
    """The forger's key behind ours in the chain, with an endorsement that ours never gave."""
    mine = new_key("certify-2", "certify", "2026-01-01T00:00:00+00:00")
    pretended = new_key("certify-1", "certify", document["keys"][0]["created"])
    made = json.loads(forged(document, [pretended, mine]))
    made["keys"][0] = document["keys"][0]
    return json.dumps(made).encode()


def drop_one(document: Document) -> None:
    document["statement"]["instances"].pop()
    document["statement"]["count"] -= 1


def add_one(document: Document) -> None:
    document["statement"]["instances"].append(document["statement"]["instances"][0])
    document["statement"]["count"] += 1


TAMPERED: dict[str, tuple[Callable[[Document], bytes], str]] = {
    "a digest": (edited(lambda d: d["statement"]["instances"][0]["received"].update(sha256="0" * 64)), "forged"),
    "another UID": (
        edited(lambda d: d["statement"]["instances"][0]["received"].update(sop_instance_uid="1")),
        "forged",
    ),
    "a later time": (edited(lambda d: d["statement"].update(issued_at="2026-12-01T00:00:00+00:00")), "forged"),
    "a field more": (edited(lambda d: d["statement"].update(more=1)), "forged"),
    "an instance less": (edited(drop_one), "forged"),
    "an instance more": (edited(add_one), "forged"),
    "a fraction": (edited(lambda d: d["statement"].update(count=3.0)), "damaged"),
    "no signature": (edited(lambda d: d.pop("signature")), "damaged"),
    "another's signature": (
        edited(lambda d: d["signature"].update(value=base64.b64encode(bytes(64)).decode())),
        "forged",
    ),
    "no base64": (edited(lambda d: d["signature"].update(value="?")), "damaged"),
    "another algorithm": (edited(lambda d: d["signature"].update(algorithm="none")), "damaged"),
    "another signer": (edited(lambda d: d["signature"].update(key_id="certify-2")), "damaged"),
    "no keys": (edited(lambda d: d.update(keys=[])), "damaged"),
    "keys of the forger": (resigned, "untrusted"),
    "a grafted key": (grafted, "untrusted"),
    "another version": (edited(lambda d: d["statement"].update(version=2)), "version"),
    "another format": (edited(lambda d: d["statement"].update(format="x")), "version"),
    "truncated": (lambda d: json.dumps(d).encode()[:-1], "damaged"),
    "a name twice": (lambda d: b'{"statement": {}, ' + json.dumps(d).encode()[1:], "damaged"),
    "empty": (lambda d: b"", "damaged"),
    "no JSON": (lambda d: b"\xff\xfe", "damaged"),
    "a list": (lambda d: b"[]", "damaged"),
    "too deep": (lambda d: b"[" * 100_000, "damaged"),
}


@pytest.mark.parametrize("what", TAMPERED)
def test_tampering_is_seen(shared: Site, what: str) -> None:
    tamper, reason = TAMPERED[what]
    document = json.loads(certify_study(shared.gw, STUDY, actor="test"))
    with pytest.raises(BadCertificate) as caught:
        opened(shared, tamper(document))
    assert caught.value.reason == f"certificate-{reason}"


def test_layout_is_free_and_the_content_is_not(shared: Site) -> None:
    document = json.loads(certify_study(shared.gw, STUDY, actor="test"))
    turned = {name: document[name] for name in reversed(document)}
    assert opened(shared, json.dumps(turned, indent=7).encode()).statement["count"] == 3


def test_it_holds_for_its_own_file_only(shared: Site, tmp_path: Path) -> None:
    one = opened(shared, certify_instance(shared.gw, shared.rows[0].id, actor="test"))
    assert [each.ok for each in check_files(one, [shared.files[0]])] == [True]
    assert [each.ok for each in check_files(one, [shared.files[1]])] == [
        False,
        False,
    ]  # other file, and its own missing
    changed = tmp_path / "changed.dcm"
    changed.write_bytes(shared.files[0].read_bytes() + b"\0\0")
    assert not any(each.ok for each in check_files(one, [changed]))
    objects = shared.objects(tmp_path)
    assert [each.ok for each in check_archive(one, objects)] == [True, False, False]


def test_clocks(shared: Site) -> None:
    data, trusted = certify_study(shared.gw, STUDY, actor="test"), read_trusted(shared.public.read_bytes())
    issued = shared.gw.index.now()
    assert open_certificate(data, trusted, issued + 40 * 365 * 86400).signer == "certify-1"  # they do not expire
    assert open_certificate(data, trusted, issued - SKEW_SECONDS / 2).signer == "certify-1"
    with pytest.raises(BadCertificate) as caught:
        open_certificate(data, trusted, issued - 2 * SKEW_SECONDS)
    assert caught.value.reason == "certificate-times"
    document = json.loads(data)
    document["statement"]["instances"][0]["proven"]["at"] = "2020-01-01T00:00:00+00:00"  # before it was received
    with pytest.raises(BadCertificate) as caught:
        open_certificate(forged(document, list(shared.gw.keys.certify_keys())), trusted, issued)
    assert caught.value.reason == "certificate-times"


# --- keys ---


def test_a_key_vouches_for_the_next(own: Site, tmp_path: Path) -> None:
    old = own.public.read_bytes()
    before = certify_instance(own.gw, own.rows[0].id, actor="test")
    for _ in range(2):
        own.gw.keys.rotate("certify")
    after = certify_instance(own.gw, own.rows[0].id, actor="test")
    found = opened(own, after)
    assert (found.signer, found.trusted_by) == ("certify-3", "certify-1")
    own.gw.keys.export_public(tmp_path / "new.json", pem=True)
    newest = read_trusted((tmp_path / "new.json").read_bytes())
    assert open_certificate(after, newest, own.gw.index.now()).signer == "certify-3"
    with pytest.raises(BadCertificate, match="neither trusted nor vouched"):  # a later key says nothing of an earlier
        open_certificate(before, newest, own.gw.index.now())
    document = json.loads(after)
    del document["keys"][1]
    with pytest.raises(BadCertificate):
        open_certificate(json.dumps(document).encode(), read_trusted(old), own.gw.index.now())


def test_keys_for_other_uses_are_not_trusted(own: Site, tmp_path: Path) -> None:
    document = json.loads(own.public.read_bytes())
    for rows in (
        [row for row in document["keys"] if row["use"] == "sign"],
        [],
        "x",
        [{"use": "certify", "public": "A"}],
    ):
        with pytest.raises(InvalidInstance, match="no Ed25519 public key"):
            read_trusted(json.dumps({**document, "keys": rows}).encode())
    with pytest.raises(InvalidInstance):
        read_certificate(tmp_path / "none", [own.public], 0.0)


# --- afterwards ---


def test_a_lost_archive_object_is_not_certified_anew(own: Site) -> None:
    row = own.rows[0]
    found = [own.gw.index.proven_instance(row.id)]
    path = own.gw.settings.archive_dir / str(row.archive_key)
    data = path.read_bytes()
    path.chmod(0o600)
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(IntegrityError):
        recheck(own.gw, InProcess(own.gw.keys), found, actor="test")  # type: ignore[arg-type]
    path.write_bytes(data)
    assert recheck(own.gw, InProcess(own.gw.keys), found, actor="test")[row.id].sha256 == row.digest  # type: ignore[arg-type]


def test_a_recheck_that_fails_is_told(own: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    found = [own.gw.index.proven_instance(own.rows[0].id)]
    prover = InProcess(own.gw.keys)
    good = prover.check(own.gw.archive.get(str(own.rows[0].archive_key), str(own.rows[0].archive_digest)))
    monkeypatch.setattr(prover, "check", lambda envelope: type(good)(True, recorded_sha256="0" * 64, sha256="0" * 64))
    with pytest.raises(IntegrityError) as caught:
        recheck(own.gw, prover, found, actor="test")  # type: ignore[arg-type]
    assert caught.value.reason == "recheck-failed"
    assert (audit.tail(own.gw.index, 2)[0]["event"], audit.tail(own.gw.index, 2)[0]["outcome"]) == (
        "rechecked",
        "failure",
    )
    assert {alert.kind for alert in own.gw.index.alerts()} == {"recheck-failed"}


def test_after_shredding_it_states_what_remains(own: Site, tmp_path: Path) -> None:
    before = opened(own, certify_instance(own.gw, own.rows[0].id, actor="test"))
    uid, digest = own.rows[0].sop_uid, own.rows[0].digest
    shred(own.gw, find_patient(own.gw, "CERT-1"), actor="test", reason="test")
    data = certify_instance(own.gw, own.rows[0].id, actor="test")
    assert uid.encode() not in data and digest.encode() not in data and STUDY.encode() not in data
    entry = opened(own, data).instances[0]
    assert entry["received"] is None and entry["shredded_at"] and entry["proven"]["restored_sha256"] is None
    assert entry["archived"] == before.instances[0]["archived"]
    paper = tmp_path / "c.json"
    paper.write_bytes(data)
    told = call("check", paper, "--public-key", own.public, "--archive", own.objects(tmp_path)[0])
    assert "shredded       instance 1" in told and "its pixels can be restored" in told
    assert [each.ok for each in check_files(before, own.files)] == [True]  # what the owner has, stays good
    call("certify", own.rows[0].id, "--recheck", "--home", own.gw.settings.home, code=1)
