"""Who may, outside the demo profile: transports, secrets of child processes and from files, closed defaults."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from gateway.bootstrap import build
from gateway.childsecrets import EVERYTHING, NOTHING
from gateway.errors import PolicyRefused, Unavailable
from gateway.settings import child_environment, load_settings, python_environment
from gateway.transport import check_backends, check_http, database_problem
from tests.running import ROOT

SOCKET = "postgresql://pacs@/pacs?host=/run/postgresql"
SECRETS = {
    "DATABASE_URL": "postgresql://u:secret-db@h/d",
    "PALIMPSEST_REDIS_URL": "rediss://:secret-redis@h",
    "PALIMPSEST_VAULT_TOKEN": "secret-vault",
    "PALIMPSEST_OIDC_CLIENT_SECRET": "secret-oidc",
    "PEER_TOKEN": "secret-peer",
    "AWS_SECRET_ACCESS_KEY": "secret-aws",
    "SOMETHING_OF_THE_SHELL": "secret-shell",
}
PEER = {"name": "peer", "kind": "stow", "url": "https://peer.example/dicomweb", "token_env": "PEER_TOKEN"}


@pytest.mark.parametrize(
    ("url", "problem"),
    [
        ("sqlite:////x/palimpsest.db", ""),
        (SOCKET, ""),
        ("postgresql://pacs:pw@db/pacs?sslmode=verify-full&sslrootcert=/ca.pem", ""),
        ("postgresql://pacs@db/pacs?sslmode=verify-full&passfile=/p", ""),
        ("postgresql://pacs:pw@db/pacs", "verify-full"),
        ("postgresql://pacs:pw@db/pacs?sslmode=require", "verify-full"),
        ("postgresql://pacs:pw@/pacs?host=10.0.0.1", "verify-full"),
        ("postgresql://pacs@db/pacs?sslmode=verify-full", "password"),
        ("postgresql://pacs:pw@/pacs?host=/run/pg&hostaddr=10.0.0.1", "verify-full"),
        ("postgresql://pacs:pw@/pacs?host=/run/pg,db.example", "verify-full"),
        ("postgresql://pacs:pw@db.example/pacs?host=/run/pg", "verify-full"),
        ("postgresql://pacs:pw@/pacs?host=/run/a&host=/run/b", ""),
        ("postgresql:///pacs", "unix socket"),
        ("postgresql:///pacs?service=x&host=/run/pg", "service"),
    ],
)
def test_the_way_to_the_database(url: str, problem: str) -> None:
    found = database_problem(url)
    assert (problem in found) if problem else found == ""
    assert "pw" not in found


def test_production_starts_over_no_network_in_clear(tmp_path: Path) -> None:
    for redis in ("redis://:pw@h", "rediss://h", "redis://h"):
        with pytest.raises(PolicyRefused) as caught:
            build(load_settings(home=tmp_path / "home", profile="production", redis_url=redis))
        assert caught.value.reason == "insecure-transport" and "Redis" in str(caught.value)
        assert "pw@" not in str(caught.value) and not (tmp_path / "home").exists(), "nothing was begun"
    for redis in (None, "unix:///run/redis.sock", "rediss://:pw@h", "sentinels://:pw@h1,h2"):
        check_backends(load_settings(home=tmp_path, profile="production", redis_url=redis, database_url=SOCKET))
    check_backends(load_settings(home=tmp_path, redis_url="redis://h", database_url="postgresql://u@h/d"))  # the demo


def test_http_is_served_over_tls_behind_a_proxy_or_to_this_machine(tmp_path: Path) -> None:
    production = {"home": tmp_path, "profile": "production"}
    for wrong in ({"http_host": "0.0.0.0"}, {"http_host": "10.1.2.3"}, {"http_tls_cert": "/c.pem"}):
        with pytest.raises(PolicyRefused, match="HTTP"):
            check_http(load_settings(**production, **wrong))
    for right in (
        {"http_host": "::1"}, {"http_host": "0.0.0.0", "http_proxy": "trusted"},
        {"http_host": "0.0.0.0", "http_tls_cert": "/c.pem", "http_tls_key": "/k.pem"},
    ):  # fmt: skip
        check_http(load_settings(**production, **right))
    check_http(load_settings(home=tmp_path, http_host="0.0.0.0"))


def test_a_child_gets_the_secrets_that_it_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    settings = load_settings(home=tmp_path, destinations=[PEER])

    def told(env: dict[str, str]) -> set[str]:
        assert env["PALIMPSEST_HOME"] == str(tmp_path) if "PALIMPSEST_HOME" in env else True
        return {value.partition("secret-")[2].partition("@")[0] for value in env.values() if "secret-" in value}

    assert told(child_environment(settings, EVERYTHING)) == {"db", "redis", "vault", "oidc", "peer", "aws", "shell"}
    assert told(child_environment(settings, frozenset({"database", "queue", "keys"}))) == {
        "db", "redis", "vault", "aws", "shell",
    }  # fmt: skip
    assert told(child_environment(settings, frozenset({"queue"}))) == {"redis", "shell"}
    assert told(child_environment(settings, NOTHING)) == set()
    assert told(python_environment(tmp_path)) == set()
    assert told(python_environment(tmp_path, settings)) == {"vault"}, "what the proving process opens the ring with"
    kms = load_settings(home=tmp_path, key_master="kms", vault_token="")
    assert "aws" in told(python_environment(tmp_path, kms))
    assert "PATH" in child_environment(settings, NOTHING)


def test_secrets_come_from_files_and_go_on_by_the_name_of_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "database"
    file.write_text("postgresql://u:from-file@h/d\n")
    monkeypatch.setenv("PALIMPSEST_DATABASE_URL_FILE", str(file))
    settings = load_settings(home=tmp_path)
    assert settings.database_url == "postgresql://u:from-file@h/d" and "from-file" not in repr(settings)
    env = child_environment(settings)
    assert env["PALIMPSEST_DATABASE_URL_FILE"] == str(file) and not any("from-file" in value for value in env.values())
    other = child_environment(load_settings(home=tmp_path, database_url="sqlite:////x"))
    assert other["DATABASE_URL"] == "sqlite:////x" and "PALIMPSEST_DATABASE_URL_FILE" not in other
    monkeypatch.setenv("PALIMPSEST_DATABASE_URL_FILE", str(tmp_path / "none"))
    with pytest.raises(Unavailable) as caught:
        load_settings(home=tmp_path)
    assert caught.value.reason == "secret-unreadable"


def test_production_names_who_may_query_and_reject(tmp_path: Path) -> None:
    demo, production = load_settings(home=tmp_path), load_settings(home=tmp_path, profile="production")
    assert demo.allows_query_ae("WS") and demo.allows_rejection_ae("CT1") and not demo.dicom_tls_bind_ae
    assert not production.allows_query_ae("WS") and not production.allows_rejection_ae("WS")
    assert production.dicom_tls_bind_ae
    named = load_settings(home=tmp_path, profile="production", query_ae_allow="WS")
    assert named.allows_query_ae("WS ") and named.allows_rejection_ae("WS") and not named.allows_rejection_ae("CT1")
    apart = load_settings(home=tmp_path, query_ae_allow="WS", rejection_ae_allow="QC, ris")
    assert apart.allows_rejection_ae("QC") and apart.allows_rejection_ae("ris") and not apart.allows_rejection_ae("WS")


def test_a_refusal_to_start_is_said_in_words(tmp_path: Path) -> None:
    env = {**os.environ, "PALIMPSEST_HOME": str(tmp_path), "PALIMPSEST_PROFILE": "production"}
    env |= {"PALIMPSEST_HTTP_HOST": "0.0.0.0", "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-m", "service.api"], env=env, capture_output=True, text=True, timeout=240)
    assert done.returncode == 1 and "PALIMPSEST_HTTP_PROXY=trusted" in done.stderr and "insecure-http" in done.stderr
