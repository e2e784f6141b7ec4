"""Destinations as they are written down: what each kind needs, what it must not have, and that no secret shows."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from gateway.circuit import CircuitState, parse_circuit, read_circuit
from gateway.errors import Unavailable
from gateway.settings import Destination, child_environment, credential, load_settings

WEB = {"kind": "stow", "url": "https://pacs.example/dicom-web/"}


def refusal(**given: Any) -> str:
    with pytest.raises(ValidationError) as error:
        Destination(name="x", **given)
    return str(error.value)


def test_every_kind_in_its_own_words() -> None:
    dicom = Destination(name="a", host="pacs", port=11112, ae_title="PACS", tls=True)
    assert (dicom.kind, dicom.where) == ("dicom", "PACS pacs:11112 (TLS)")
    web = Destination(name="b", **WEB, username="me", password_env="PW", dimse={"port": 4242, "ae_title": "O"})
    assert (web.url, web.where) == ("https://pacs.example/dicom-web", "https://pacs.example/dicom-web")
    assert web.dimse is not None and web.dimse.port == 4242
    assert Destination(name="c", kind="s3", bucket="images", prefix="dicom/").where == "s3://images/dicom/"
    assert Destination(name="d", kind="filesystem", path="/mnt").where == "folder"
    assert Destination(name="e", representation="envelope") == Destination(name="e")  # type: ignore[call-arg]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"kind": "stow"}, "needs url"),
        ({"kind": "s3"}, "needs bucket"),
        ({"kind": "filesystem"}, "needs path"),
        ({"kind": "s3", "bucket": "b", "url": "https://x"}, "no use for url"),
        ({"bucket": "b"}, "no use for bucket"),
        ({"kind": "stow", "url": "http://pacs.example/w"}, "https"),
        ({"kind": "stow", "url": "https://me:pw@pacs.example/w"}, "no credentials in a URL"),
        ({"kind": "stow", "url": "ftp://pacs.example"}, "begins with https"),
        ({**WEB, "username": "me"}, "go together"),
        ({**WEB, "username": "me", "password_env": "P", "token_env": "T"}, "choose between"),
        ({**WEB, "client_cert_file": "c.pem"}, "go together"),
        ({**WEB, "token": "secret"}, "token"),
    ],
)
def test_what_makes_no_sense_is_refused_with_what_to_do(given: dict[str, Any], said: str) -> None:
    assert said in refusal(**given)


def test_http_is_for_this_machine_or_on_purpose() -> None:
    assert Destination(name="a", kind="stow", url="http://127.0.0.1:8042/dicom-web")
    assert Destination(name="a", kind="stow", url="http://pacs.example/w", allow_http=True)


def test_a_destination_goes_to_children_as_it_is_and_without_secrets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = tmp_path / "token"
    secret.write_text("s3cret\n")
    monkeypatch.setenv("PW", "hunter2")
    places = (
        Destination(name="a", **WEB, token_file=secret),
        Destination(name="b", **WEB, username="u", password_env="PW"),
        Destination(name="c", move=True, forward=False),
    )
    settings = load_settings(home=tmp_path, destinations=places)
    given = child_environment(settings)["PALIMPSEST_DESTINATIONS"]
    assert tuple(Destination(**each) for each in json.loads(given)) == places
    assert credential(places[0], "token") == "s3cret" and credential(places[1], "password") == "hunter2"
    for shown in (given, repr(settings), repr(places)):
        assert "s3cret" not in shown and "hunter2" not in shown
    assert credential(places[2], "token") == ""
    secret.unlink()
    monkeypatch.delenv("PW")
    for place, word in ((places[0], "token"), (places[1], "password")):
        with pytest.raises(Unavailable, match="cannot be read|no PW") as error:
            credential(place, word)  # type: ignore[arg-type]
        assert error.value.reason == "credential-unreadable"


def test_a_place_changes_with_the_address_and_with_nothing_else() -> None:
    one = Destination(name="a", host="pacs")
    assert one.place == Destination(name="b", host="pacs", commitment=True).place
    assert one.place != Destination(name="a", host="pacs", port=11112).place
    assert Destination(name="a", **WEB).place == Destination(name="a", **WEB, token_env="T").place


def test_a_circuit_is_read_as_it_was_written_and_torn_it_is_closed(tmp_path: Path) -> None:
    state = CircuitState(3, time.time() + 100, "unreachable", frozenset({"w"}))
    assert parse_circuit(state.dump()) == state and state.is_open
    ahead = CircuitState(3, time.time() + 3 * 24 * 3600, "timeout", frozenset({"w"}))  # a clock that was set back since
    assert not parse_circuit(ahead.dump()).is_open
    for text in ("", "{", "[]", '{"failures": "many"}'):
        assert parse_circuit(text) == CircuitState()
    assert read_circuit(tmp_path, "never") == CircuitState()
    (tmp_path / "forward-pacs.lock").write_text(state.dump())
    assert read_circuit(tmp_path, "pacs") == state
