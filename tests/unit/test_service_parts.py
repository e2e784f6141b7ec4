"""Smaller parts of the service: problems, tokens, access rules, transfer syntax order, bounded receive."""

from __future__ import annotations

import ast
import random
import subprocess
import sys
import threading
from collections.abc import Iterator
from hashlib import sha256
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jwt
import pytest
from anyio import CapacityLimiter, create_task_group, fail_after, run, to_thread
from anyio.lowlevel import checkpoint
from fastapi import FastAPI, Request
from fastapi.testclient import TestClient
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom._uid_dict import UID_dictionary
from pydicom.filewriter import write_file_meta_info
from pynetdicom.dimse_messages import C_STORE_RQ
from pynetdicom.dimse_primitives import C_STORE
from pynetdicom.dsutils import create_file_meta, decode, encode

from gateway import errors
from gateway.bootstrap import Gateway
from gateway.part10 import peek
from gateway.spool import SPACE_CHECK_BYTES, Receiving
from gateway.tokens import Role, TokenRefused, mint_token, verify_token
from service import api, problems
from service.access import PUBLIC, RULES, guard_for
from service.answers import related
from service.listener_command import MAX_COMMENT, StoreCommand, file_meta, parse_store, store_response
from service.listener_syntax import KNOWN_SYNTAXES, LOSSLESS, LOSSY, REFERENCED, UNCOMPRESSED, rank, sort_syntaxes
from service.multipart import MultipartError
from service.stow_answer import Outcome, answer
from tests.fakes import CT, EXPLICIT_LE, part10

SERVICE = Path(api.__file__).parent


# --- problems ----------------------------------------------------------------------------------------------------


def every_error() -> list[type[errors.PalimpsestError]]:
    found, waiting = [], [errors.PalimpsestError]
    while waiting:
        kind = waiting.pop()
        found.append(kind)
        waiting += kind.__subclasses__()
    return found


def answering(error: Exception) -> Any:
    app = FastAPI()

    @app.get("/")
    def fail() -> None:
        raise error

    problems.install(app)
    return TestClient(app, raise_server_exceptions=False).get("/")


@pytest.mark.parametrize("kind", every_error(), ids=lambda kind: kind.__name__)
def test_every_error_has_its_status_and_problem(kind: type[errors.PalimpsestError]) -> None:
    got = answering(kind("some-reason", "A sentence."))
    assert got.status_code == kind.http_status
    assert got.headers["content-type"] == "application/problem+json"
    body = got.json()
    assert (body["status"], body["reason"], body["detail"]) == (kind.http_status, "some-reason", "A sentence.")
    assert body["type"] == "urn:palimpsest:problem:some-reason" and body["title"]
    assert ("retry-after" in got.headers) == issubclass(kind, errors.Unavailable)
    assert ("www-authenticate" in got.headers) == (kind.http_status == 401)


def test_other_errors_are_problems_too_and_say_nothing() -> None:
    got = answering(MultipartError("truncated", "the body ends before its closing delimiter"))
    assert (got.status_code, got.json()["reason"]) == (400, "multipart-truncated")
    got = answering(KeyError("Doe^John"))
    assert (got.status_code, got.json()["reason"]) == (500, "internal-error")
    assert "Doe" not in got.text


# --- tokens and rules --------------------------------------------------------------------------------------------


@pytest.fixture
def gateway() -> Any:
    keys = SimpleNamespace(token_key=lambda: ("token-1", b"k" * 32))
    return SimpleNamespace(keys=keys, settings=SimpleNamespace(token_ttl_seconds=60, profile="demo"))


@pytest.mark.parametrize("role", list(Role))
def test_a_token_says_who_and_in_which_role(gateway: Any, role: Role) -> None:
    principal = verify_token(gateway, mint_token(gateway, role, "dr.house@ward-3"))
    assert (principal.subject, principal.roles) == ("dr.house@ward-3", {role})


@pytest.mark.parametrize(
    ("role", "subject", "ttl", "reason"),
    [
        ("root", "a", None, "unknown-role"), ("admin", "", None, "bad-subject"), ("admin", "a b", None, "bad-subject"),
        ("admin", "a" * 65, None, "bad-subject"), ("admin", "a", 0, "bad-ttl"), ("admin", "a", 1e9, "bad-ttl"),
    ],
)  # fmt: skip
def test_tokens_that_are_not_minted(gateway: Any, role: str, subject: str, ttl: Any, reason: str) -> None:
    with pytest.raises(errors.PolicyRefused) as caught:
        mint_token(gateway, role, subject, ttl)
    assert caught.value.reason == reason


def forged(key: bytes = b"k" * 32, algorithm: str = "HS256", kid: str = "token-1", **claims: Any) -> str:
    base = {"iss": "palimpsest", "aud": "palimpsest", "sub": "x", "role": "admin", "iat": 1, "exp": 1 << 40, "jti": "j"}
    merged = {name: value for name, value in {**base, **claims}.items() if value is not None}
    return jwt.encode(merged, key if algorithm != "none" else "", algorithm=algorithm, headers={"kid": kid})


@pytest.mark.parametrize(
    ("token", "reason"),
    [
        (forged(exp=1000), "token-expired"),
        (forged(key=b"x" * 32), "token-invalid"),
        (forged(kid="token-0"), "token-invalid"),
        (forged(algorithm="none"), "token-invalid"),
        (forged(algorithm="HS512", key=b"k" * 64), "token-invalid"),
        (forged(aud="other"), "token-invalid"),
        (forged(iss="other"), "token-invalid"),
        (forged(role="root"), "token-invalid"),
        (forged(role=None), "token-invalid"),
        (forged(exp=None), "token-invalid"),
        (forged(sub=None), "token-invalid"),
        (forged(jti=None), "token-invalid"),
        ("", "token-invalid"),
        ("a.b.c", "token-invalid"),
        ("ü", "token-invalid"),
    ],
)
def test_tokens_that_are_refused(gateway: Any, token: str, reason: str) -> None:
    with pytest.raises(TokenRefused) as caught:
        verify_token(gateway, token)
    assert caught.value.reason == reason


def test_a_route_without_a_rule_cannot_be_built() -> None:
    with pytest.raises(KeyError):
        guard_for("GET", "/secret")
    assert guard_for("GET", "/healthz").roles == PUBLIC
    assert not any(Role.ADMIN in roles for (_, path), roles in RULES.items() if path.startswith("/dicomweb"))


# --- what the room may know --------------------------------------------------------------------------------------


def test_the_service_imports_no_other_room_and_keeps_pynetdicom_in_the_listener() -> None:
    for path in SERVICE.glob("*.py"):
        tree = ast.parse(path.read_text("utf-8"))
        names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
        names |= {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
        tops = {name.split(".")[0] for name in names}
        assert not tops & {"worker", "codec", "stego", "torch", "numba", "celery", "palimpsest"}, path.name
        assert "pynetdicom" not in tops or path.name.startswith("listener"), path.name


def test_importing_the_api_does_no_work_and_loads_no_heavy_library() -> None:
    heavy = ("torch", "numba", "imagecodecs", "pynetdicom", "worker", "codec", "stego")
    code = f"import sys, service.api; print([n for n in {heavy!r} if n in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=SERVICE.parent, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, "[]"), done.stderr


# --- transfer syntaxes -------------------------------------------------------------------------------------------

NOT_FOR_STORAGE = {
    "1.2.840.10008.1.2.6.1",  # MIME
    "1.2.840.10008.1.2.6.2",  # XML
    "1.2.840.10008.1.20",  # Papyrus 3
}


def test_every_transfer_syntax_of_ps36_has_a_rank() -> None:
    known = {uid for uid, entry in UID_dictionary.items() if entry[1] == "Transfer Syntax"}
    assert known - set(KNOWN_SYNTAXES) == NOT_FOR_STORAGE
    assert len(set(KNOWN_SYNTAXES)) == len(KNOWN_SYNTAXES)


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.sampled_from([*KNOWN_SYNTAXES, "1.2.3.private", "1.2.3.other"]), unique=True, max_size=12),
    st.integers(),
)
def test_the_order_never_depends_on_the_proposer(proposed: list[str], seed: int) -> None:
    ordered = sort_syntaxes(proposed)
    shuffled = random.Random(seed).sample(proposed, len(proposed))
    assert [rank(uid) for uid in sort_syntaxes(shuffled)] == [rank(uid) for uid in ordered]
    assert sorted(ordered) == sorted(proposed)
    groups = (UNCOMPRESSED, LOSSLESS, LOSSY, REFERENCED)
    places = [next((n for n, group in enumerate(groups) if uid in group), len(groups)) for uid in ordered]
    assert places == sorted(places)


# --- receiving ---------------------------------------------------------------------------------------------------


def test_what_arrives_in_pieces_is_measured_as_a_whole(gw: Gateway) -> None:
    data = part10()
    at = peek(data).dataset_offset
    file = gw.spool.receive(data[:at])
    for start in range(at, len(data), 100):
        file.write(memoryview(data)[start : start + 100])
    stored = file.finish()
    assert stored.path.read_bytes() == data
    assert (stored.digest, stored.size) == (sha256(data).hexdigest(), len(data))
    assert stored.dataset_digest == sha256(data[at:]).hexdigest()
    file.discard()
    file.discard()
    assert list(gw.settings.incoming_dir.iterdir()) == []


def refusal(file: Receiving) -> str:
    with pytest.raises(errors.PalimpsestError) as caught:
        file.finish()
    assert file.path.stat().st_size == 0 and caught.value.dimse_status == 0xA700
    file.discard()
    return caught.value.reason


def test_above_the_bound_the_file_is_cut_to_nothing(gw: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gw.spool, "_max_object", 1000)
    file = gw.spool.receive(b"head")
    for _ in range(50):
        file.write(b"x" * 100)
    assert refusal(file) == "object-too-large"


def test_space_is_looked_at_while_receiving(gw: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    file = gw.spool.receive(b"")
    file.write(bytes(SPACE_CHECK_BYTES - 1))

    def full() -> None:
        raise errors.OutOfResources("watermark")

    monkeypatch.setattr(gw.spool, "check_space", full)
    file.write(b"12")
    assert refusal(file) == "watermark"


def test_a_disk_that_cannot_be_written_is_a_refusal_not_a_crash(gw: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    file = gw.spool.receive(b"")

    def full(fd: int, data: bytes) -> int:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("gateway.spool.os.write", full)
        file.write(b"abc")
        assert refusal(file) == "disk-full"


@pytest.mark.parametrize("data_set", [True, False])
def test_a_store_command_is_read_as_pynetdicom_writes_it(data_set: bool) -> None:
    request = C_STORE()
    request.MessageID, request.Priority = 7, 1
    request.AffectedSOPClassUID, request.AffectedSOPInstanceUID = CT, "1.2.3"
    request.DataSet = BytesIO(b"1234") if data_set else None
    message = C_STORE_RQ()
    message.primitive_to_message(request)
    command = encode(message.command_set, True, True)
    assert command is not None
    assert parse_store(command) == StoreCommand(7, CT, "1.2.3", 1, data_set)
    message.command_set.CommandField = 0x0030
    assert parse_store(encode(message.command_set, True, True) or b"") is None
    for cut in (1, 9, len(command) - 1):
        with pytest.raises(ValueError):
            parse_store(command[:cut])


def test_a_store_response_is_what_pynetdicom_reads() -> None:
    asked = StoreCommand(7, CT, "1.2.3", 0, True)
    answer = decode(BytesIO(store_response(asked, 0xA900, "x" * 200)), True, True)
    assert (answer.CommandField, answer.MessageIDBeingRespondedTo, answer.CommandDataSetType) == (0x8001, 7, 0x0101)
    assert (answer.Status, answer.ErrorComment) == (0xA900, "x" * MAX_COMMENT)
    assert (answer.AffectedSOPClassUID, answer.AffectedSOPInstanceUID) == (CT, "1.2.3")
    assert answer.CommandGroupLength == len(store_response(asked, 0xA900, "x" * 200)) - 12
    assert "ErrorComment" not in decode(BytesIO(store_response(asked, 0)), True, True)


def test_file_meta_information_is_as_pydicom_writes_it() -> None:
    expected = BytesIO(bytes(128) + b"DICM")
    expected.seek(0, 2)
    write_file_meta_info(
        expected, create_file_meta(sop_class_uid=CT, sop_instance_uid="1.2.3", transfer_syntax=EXPLICIT_LE)
    )
    assert file_meta(CT, "1.2.3", EXPLICIT_LE) == expected.getvalue()


# --- the answer of STOW-RS ---------------------------------------------------------------------------------------

STORED = Outcome(sop_class="1.2", sop_instance="1.2.3", study="1.5", series="1.6")


@pytest.mark.parametrize(
    ("outcomes", "status"),
    [
        ([STORED], 200),
        ([STORED, Outcome(0xC000, 400, "not-part10")], 202),
        ([Outcome(0xC000, 400, "not-part10")], 409),
        ([Outcome(0xA700, 507, "watermark"), Outcome(0xA700, 507, "watermark")], 507),
        ([Outcome(0xA700, 413, "object-too-large")], 413),
        ([Outcome(0xA700, 503, "database-unavailable")], 503),
        ([Outcome(0xA700, 507, "watermark"), Outcome(0xC000, 400, "not-part10")], 409),
        ([STORED, Outcome(0xA700, 507, "watermark")], 202),
    ],
)
def test_the_status_of_a_store_request(outcomes: list[Outcome], status: int) -> None:
    got = answer(outcomes, lambda *uids: "/".join(uids))
    assert got.status_code == status
    assert ("retry-after" in got.headers) == (status in (503, 507))


def test_answers_that_wait_in_their_middle_leave_the_threads_of_all_else_alone() -> None:
    gate = threading.Event()

    def pieces() -> Iterator[bytes]:
        yield b"begun"
        gate.wait()
        yield b"done"

    async def nothing(*_: Any) -> Any:
        return {"type": "http.request"} if not _ else None

    async def main() -> None:
        app = SimpleNamespace(state=SimpleNamespace(sending=CapacityLimiter(2)))
        request = Request({"type": "http", "method": "GET", "headers": [], "app": app})
        scope = {"type": "http", "asgi": {"spec_version": "2.4"}}
        async with create_task_group() as group:
            for _ in range(50):  # more than the threads that all else shares
                answer = related(request, pieces(), "a/b", "x", "tag")
                group.start_soon(answer, scope, nothing, nothing)
            while app.state.sending.borrowed_tokens < 2 or app.state.sending.statistics().tasks_waiting < 48:
                await checkpoint()
            with fail_after(60):
                assert await to_thread.run_sync(lambda: "taken in") == "taken in"
            gate.set()

    run(main)
