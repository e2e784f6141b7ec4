"""The C-STORE sender against a real association server: bytes as they are, every refusal named, lost lines reopened."""

import hashlib
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset
from pynetdicom import AE, AllStoragePresentationContexts, evt

from gateway.part10 import Peek
from gateway.uids import SOPClassUID, SOPInstanceUID
from palimpsest import dimse
from palimpsest.dimse import Answer, SendError, Target, batches, echo, send_all, status_reason
from palimpsest.scan import Found, inspect

NAMES = ("CT_small.dcm", "MR_small_implicit.dcm", "MR_small_bigendian.dcm", "MR_small_RLE.dcm", "test-SR.dcm")


def found(name: str) -> Found:
    item = inspect(Path(str(get_testdata_file(name, download=False))))
    assert isinstance(item, Found)
    return item


class Server:
    """A C-STORE SCP that keeps data sets; `script`: statuses for the first answers, 'abort' to drop the line."""

    def __init__(self, refuse: str = "") -> None:
        self.datasets: list[bytes] = []
        self.script: list[int | str] = []
        self.associations = 0
        self._lock = threading.Lock()
        self._ae = AE(ae_title="PROBE")
        self._ae.require_called_aet = True
        for context in AllStoragePresentationContexts:
            if context.abstract_syntax != refuse:
                syntaxes = ["1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2", "1.2.840.10008.1.2.5"]
                self._ae.add_supported_context(context.abstract_syntax, syntaxes)
        self._ae.add_supported_context("1.2.840.10008.1.1")
        handlers = [(evt.EVT_C_STORE, self._store), (evt.EVT_ESTABLISHED, self._count)]
        self._server = self._ae.start_server(("127.0.0.1", 0), block=False, evt_handlers=handlers)
        self.target = Target("127.0.0.1", self._server.server_address[1], "PROBE")

    def _count(self, event: Any) -> None:
        self.associations += 1

    def _store(self, event: Any) -> int | Dataset:
        with self._lock:
            step = self.script.pop(0) if self.script else 0
        if step == "abort":
            event.assoc.abort()
            return 0
        if step:
            answer = Dataset()
            answer.Status = step
            answer.ErrorComment = "said-so"
            return answer
        self.datasets.append(event.request.DataSet.getvalue())
        return 0

    def close(self) -> None:
        if self._server in self._ae._servers:
            self._server.shutdown()


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server()
    yield made
    made.close()


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dimse, "PAUSE_SECONDS", (0.01,))


def send(files: list[Found], target: Target, associations: int = 1) -> list[Answer]:
    answers: list[Answer] = []
    send_all(files, target, answers.append, associations=associations)
    return answers


def test_data_sets_arrive_as_they_lie_in_the_files(server: Server) -> None:
    files = [found(name) for name in NAMES]
    answers = send(files, server.target, associations=3)
    assert len(answers) == len(files) and all(a.ok and a.status == 0 for a in answers)
    assert {hashlib.sha256(d).hexdigest() for d in server.datasets} == {f.dataset_digest for f in files}


def test_meta_information_that_disagrees_is_replaced_and_the_data_set_is_not(server: Server, tmp_path: Path) -> None:
    content = found("CT_small.dcm").path.read_bytes()
    uid = found("CT_small.dcm").head.sop_instance_uid.encode()
    position = content.index(uid)  # the first one is Media Storage SOP Instance UID
    odd = tmp_path / "odd.dcm"
    odd.write_bytes(content[:position] + b"9" + content[position + 1 :])
    item = inspect(odd)
    assert isinstance(item, Found)
    assert [a.ok for a in send([item], server.target)] == [True]
    assert hashlib.sha256(server.datasets[0]).hexdigest() == found("CT_small.dcm").dataset_digest


@pytest.mark.parametrize(
    ("status", "reason"),
    [(0x0117, "invalid-sop-instance-uid"), (0xA900, "data-set-does-not-match"), (0xC001, "cannot-understand")],
)
def test_a_refusal_is_final_and_named(server: Server, status: int, reason: str) -> None:
    server.script = [status]
    (answer,) = send([found("CT_small.dcm")], server.target)
    assert (answer.ok, answer.status, answer.reason, answer.detail) == (False, status, reason, "said-so")
    assert server.datasets == []


def test_out_of_resources_is_tried_again(server: Server) -> None:
    server.script = [0xA700, 0xA700]
    (answer,) = send([found("CT_small.dcm")], server.target)
    assert answer.ok and len(server.datasets) == 1


def test_out_of_resources_for_ever_is_a_refusal(server: Server) -> None:
    server.script = [0xA700] * 50
    (answer,) = send([found("CT_small.dcm")], server.target)
    assert (answer.ok, answer.reason) == (False, "out-of-resources")


def test_a_lost_association_is_opened_again_and_nothing_is_lost(server: Server) -> None:
    files = [found(name) for name in NAMES]
    server.script = [0, "abort", 0, "abort"]
    answers = send(files, server.target)
    assert all(a.ok for a in answers) and server.associations >= 2
    assert {hashlib.sha256(d).hexdigest() for d in server.datasets} == {f.dataset_digest for f in files}


def test_a_context_that_is_not_accepted_refuses_that_file_only() -> None:
    ct, mr = found("CT_small.dcm"), found("MR_small_RLE.dcm")
    server = Server(refuse=ct.head.sop_class_uid)
    try:
        answers = {a.found.path.name: a for a in send([ct, mr], server.target)}
    finally:
        server.close()
    assert answers["CT_small.dcm"].reason == "no-presentation-context"
    assert answers["MR_small_RLE.dcm"].ok


def test_nobody_there_and_a_wrong_title_are_one_clear_error(server: Server) -> None:
    with pytest.raises(SendError, match="(?i)called AE title"):
        send([found("CT_small.dcm")], replace(server.target, ae_title="OTHER"))
    server.close()
    with pytest.raises(SendError, match="nobody answers as PROBE"):
        send([found("CT_small.dcm")], server.target)


def test_echo(server: Server) -> None:
    assert echo(server.target)
    assert not echo(replace(server.target, ae_title="OTHER"))


def test_batches_stay_within_128_contexts_and_lose_nothing() -> None:
    files = [
        Found(
            Path(f"{n}.dcm"), 1,
            Peek(SOPClassUID(f"1.2.{n % 150}"), SOPInstanceUID(f"1.3.{n}"), None, None, f"1.4.{n % 2}", 0), str(n),
        )
        for n in range(700)
    ]  # fmt: skip
    groups = list(batches(files))
    assert sorted(int(f.dataset_digest) for group in groups for f in group) == list(range(700))
    for group in groups:
        assert len({(f.head.sop_class_uid, f.head.transfer_syntax) for f in group}) <= dimse.MAX_CONTEXTS


@pytest.mark.parametrize(
    ("code", "reason"), [(0, ""), (0xB000, ""), (0xA7FF, "out-of-resources"), (0x0122, "sop-class-not-supported"),
                         (0xDEAD, "status-dead")]
)  # fmt: skip
def test_statuses_have_words(code: int, reason: str) -> None:
    assert status_reason(code) == reason
