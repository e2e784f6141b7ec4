"""Settings, identifiers, states and errors: the vocabulary of the hall."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from gateway import errors
from gateway.broker import find_server_binary, server_command
from gateway.errors import BadUID, IntegrityError, PalimpsestError, Unavailable
from gateway.instance import TRANSITIONS, UNFINISHED, State, check_transition
from gateway.redis_link import RedisLink
from gateway.settings import MAX_SOCKET_PATH, Settings, child_environment, load_settings
from gateway.uids import parse_ae, parse_uid


def test_defaults_are_the_demo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    made = load_settings()
    assert made.home == tmp_path / "var" and made.profile == "demo" and made.watermark_bytes == 1_000_000_000
    assert (made.ae_title, made.dicom_host, made.dicom_port, made.http_port) == ("PALIMPSEST", "127.0.0.1", 11112, 8080)
    assert RedisLink.of(made).socket == f"{tmp_path}/var/run/redis.sock"
    assert made.database == f"sqlite:///{tmp_path}/var/palimpsest.db"
    assert made.allows_calling_ae("ANY") and not made.require_key_backup
    assert made.incoming_dir.is_relative_to(made.spool_dir) and not made.keys_dir.is_relative_to(made.archive_dir)


def test_production_is_closed_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PALIMPSEST_PROFILE", "production")
    made = load_settings()
    assert made.watermark_bytes == 5_000_000_000 and made.require_key_backup and not made.allows_calling_ae("CT1")
    monkeypatch.setenv("PALIMPSEST_CALLING_AE_ALLOW", "CT1, MR1")
    assert load_settings().allows_calling_ae("MR1 ") and not load_settings().allows_calling_ae("XX")


def test_urls_with_and_without_prefix(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", "postgres://u@h/d")
    monkeypatch.setenv("REDIS_URL", "redis://h:1/0")
    assert load_settings().database == "postgresql+psycopg://u@h/d" and load_settings().redis_url == "redis://h:1/0"
    monkeypatch.setenv("PALIMPSEST_REDIS_URL", "redis://other:1/0")
    assert load_settings().redis_url == "redis://other:1/0"
    monkeypatch.setenv("DATABASE_URL", "")
    assert load_settings().database_url is None


def test_settings_are_frozen_and_checked(settings: Settings) -> None:
    with pytest.raises(ValidationError):
        settings.http_port = 1  # type: ignore[misc]
    with pytest.raises(ValidationError):
        load_settings(max_attempts=0)


def test_an_error_quotes_no_secret() -> None:
    with pytest.raises(ValidationError) as found:
        Settings(redis_password="hush-hush", audit_syslog_host="log.example")
    assert "PALIMPSEST_AUDIT_SYSLOG_CA" in str(found.value) and "hush" not in str(found.value)


def test_destinations_from_environment_or_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    row = {"name": "pacs", "host": "10.0.0.1", "port": 104, "ae_title": "PACS"}
    (tmp_path / "destinations.json").write_text(json.dumps([row]))
    made = load_settings(home=tmp_path)
    found = made.destination("pacs")
    assert found is not None and found.ae_title == "PACS" and made.destination("x") is None
    monkeypatch.setenv("PALIMPSEST_DESTINATIONS", json.dumps([{**row, "name": "other"}]))
    assert [d.name for d in load_settings(home=tmp_path).destinations] == ["other"]


def test_children_get_the_same_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = load_settings(home=tmp_path, dicom_port=5, destinations=[{"name": "a"}])
    for name, value in child_environment(made).items():
        if name.startswith("PALIMPSEST_"):
            monkeypatch.setenv(name, value)
    again = load_settings()
    assert (again.home, again.dicom_port, again.destinations) == (made.home, 5, made.destinations)


def test_socket_paths_fit_the_kernel(tmp_path: Path) -> None:
    deep = load_settings(home=tmp_path / ("x" * 120))
    assert len(str(deep.redis_socket)) <= MAX_SOCKET_PATH
    assert deep.redis_socket != load_settings(home=tmp_path / ("y" * 120)).redis_socket


def test_the_embedded_broker_is_found_and_opens_no_port(tmp_path: Path) -> None:
    assert find_server_binary().is_file()
    command = server_command(load_settings(home=tmp_path))
    options = dict(zip(command[1::2], command[2::2], strict=True))
    assert options["--port"] == "0" and options["--appendonly"] == "no"
    assert options["--maxmemory-policy"] == "noeviction"


@given(st.lists(st.integers(0, 10**12), min_size=1, max_size=6))
def test_uids_are_kept_as_sent(parts: list[int]) -> None:
    text = ".".join(map(str, parts))
    if len(text) <= 64:
        assert parse_uid(text) == text and parse_uid(text + "\0") == text and parse_uid(text + " ") == text


@pytest.mark.parametrize(
    "text", ["", ".", "1.", ".1", "1..2", "1.a", "1/2", "1" * 65, "1.2\n", "1.2\0\0x", "１.2", "../1"]
)
def test_bad_uids(text: str) -> None:
    with pytest.raises(BadUID) as caught:
        parse_uid(text)
    assert len(text) < 4 or text not in caught.value.message


def test_leading_zeros_are_tolerated() -> None:
    assert parse_uid("1.02.003") == "1.02.003"


@pytest.mark.parametrize(
    ("text", "good"), [("CT1", True), (" CT 1 ", True), ("", False), ("A" * 17, False), ("A\\B", False)]
)
def test_ae_titles(text: str, good: bool) -> None:
    if good:
        assert parse_ae(text) == text.strip()
        return
    with pytest.raises(BadUID):
        parse_ae(text)


def test_the_table_of_transitions_is_the_law() -> None:
    for old in State:
        for new in State:
            if new in TRANSITIONS[old]:
                check_transition(old, new)
            else:
                with pytest.raises(IntegrityError):
                    check_transition(old, new)
    assert set(TRANSITIONS) == set(State) and not TRANSITIONS[State.RELEASED]
    assert {State.ARCHIVED, State.RELEASED}.isdisjoint(UNFINISHED)


def every_error() -> list[type[PalimpsestError]]:
    return [v for v in vars(errors).values() if isinstance(v, type) and issubclass(v, PalimpsestError)]


@pytest.mark.parametrize("kind", every_error(), ids=lambda kind: kind.__name__)
def test_every_error_is_a_problem_and_can_be_pickled(kind: type[PalimpsestError]) -> None:
    error = kind("some-reason", "a sentence")
    problem = error.problem()
    assert (problem["status"], problem["reason"], problem["detail"]) == (kind.http_status, "some-reason", "a sentence")
    assert 400 <= kind.http_status < 600 and kind.dimse_status > 0
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is kind and again.problem() == problem


def test_unavailable_says_when_to_come_back() -> None:
    assert Unavailable("x", retry_after=7).problem()["retry_after"] == 7


def test_passwords_in_urls_are_not_in_the_repr() -> None:
    settings = Settings(redis_url="redis://:s3kr1t@broker/0", database_url="postgresql://u:s3kr1t@db/p")
    assert "s3kr1t" not in repr(settings) + str(settings)
