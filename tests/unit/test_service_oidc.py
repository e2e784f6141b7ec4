"""Tokens of an identity provider: what of them counts, its keys as they rotate, and a provider that misbehaves."""

from __future__ import annotations

import base64
import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from jwt.algorithms import ECAlgorithm, RSAAlgorithm
from pydantic import ValidationError

from gateway.errors import PolicyRefused, Unavailable
from gateway.settings import Settings, load_settings
from gateway.tokens import Role, TokenRefused
from service.oidc import TIMEOUT_SECONDS, Provider, principal_from, provider_of
from tests.fakes import FakeClock

RSA, OTHER = rsa.generate_private_key(65537, 2048), rsa.generate_private_key(65537, 2048)
CURVE = ec.generate_private_key(ec.SECP256R1())
PEM = RSA.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


class Scripted:
    """A provider whose answers the test writes. asked: the paths, in order."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.about: dict[str, Any] = {}
        self.body: dict[str, bytes] = {}
        self.keys: list[dict[str, Any]] = [
            json.loads(RSAAlgorithm.to_jwk(RSA.public_key())) | {"kid": "rsa", "use": "sig"},
            json.loads(ECAlgorithm.to_jwk(CURVE.public_key())) | {"kid": "ec", "alg": "ES256"},
            json.loads(RSAAlgorithm.to_jwk(OTHER.public_key())) | {"kid": "enc", "use": "enc"},
            {"kty": "oct", "kid": "shared", "k": base64.urlsafe_b64encode(b"s" * 32).decode()},
        ]
        script = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                script.asked.append(self.path)
                data = script.body.get(self.path, script.answer(self.path))
                self.send_response(200)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, format: str, *args: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.issuer = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def answer(self, path: str) -> bytes:
        about = {"issuer": self.issuer, "jwks_uri": f"{self.issuer}/keys", "token_endpoint": f"{self.issuer}/token"}
        return json.dumps({"keys": self.keys} if path == "/keys" else about | self.about).encode()


@pytest.fixture
def script() -> Iterator[Scripted]:
    made = Scripted()
    yield made
    made.server.shutdown()
    made.server.server_close()


def settings_for(issuer: str, **changes: Any) -> Settings:
    given = {"oidc_issuer": issuer, "oidc_client_id": "pacs", "oidc_audience": "api", "oidc_leeway_seconds": 5}
    return load_settings(**{**given, **changes})


def token(script: Scripted, key: Any = RSA, algorithm: str = "RS256", kid: str | None = "rsa", **changes: Any) -> str:
    now = int(time.time())
    base = {"iss": script.issuer, "aud": "api", "sub": "modality-7", "exp": now + 60, "iat": now, "roles": ["service"]}
    claims = {name: value for name, value in {**base, **changes}.items() if value is not None}
    return jwt.encode(claims, key, algorithm, headers={"kid": kid} if kid else {})


def test_a_good_token_says_who_and_in_which_roles(script: Scripted) -> None:
    provider = Provider(settings_for(script.issuer, oidc_leeway_seconds=300))
    principal = provider.machine(token(script))
    assert (principal.subject, principal.roles, principal.issuer) == ("modality-7", {Role.SERVICE}, script.issuer)
    assert provider.machine(token(script, CURVE, "ES256", "ec")).subject == "modality-7"
    assert provider.machine(token(script, algorithm="PS256")).subject == "modality-7"
    assert provider.machine(
        token(script, aud=["other", "api"], nbf=int(time.time()) + 150, exp=int(time.time()) - 150)
    ).roles
    assert script.asked == ["/.well-known/openid-configuration", "/keys"], "asked once, kept"


def test_tokens_that_are_refused(script: Scripted) -> None:
    provider, now = Provider(settings_for(script.issuer)), int(time.time())
    confused = jwt.api_jws.PyJWS()
    header = base64.urlsafe_b64encode(b'{"alg":"HS256","kid":"rsa","typ":"JWT"}').rstrip(b"=")
    payload = token(script).split(".")[1].encode()
    signature = jwt.algorithms.HMACAlgorithm(jwt.algorithms.HMACAlgorithm.SHA256).sign(header + b"." + payload, PEM)
    by_public_key = b".".join((header, payload, base64.urlsafe_b64encode(signature).rstrip(b"="))).decode()
    refused = {
        "another issuer": token(script, iss="https://else.example"),
        "another audience": token(script, aud="pacs"),
        "no audience": token(script, aud=None),
        "not yet": token(script, nbf=now + 60),
        "no end": token(script, exp=None),
        "nobody": token(script, sub=None),
        "an ID token": token(script, nonce="n"),
        "another's key": token(script, OTHER),
        "a key for encryption": token(script, OTHER, kid="enc"),
        "another kind of key": token(script, kid="ec"),
        "no key named, several there": token(script, kid=None),
        "an algorithm that the key is not for": token(script, CURVE, "ES256", "rsa"),
        "a name with control characters": token(script, sub="a\nb"),
        "a name that is none": token(script, sub=" "),
        "too large": token(script, filler="x" * 20_000),
    }
    for what, each in refused.items():
        with pytest.raises(TokenRefused) as caught:
            provider.machine(each)
        assert caught.value.reason == "token-invalid", what
    for what, each in {
        "HMAC by the public key": by_public_key,
        "HMAC by a shared key of theirs": token(script, b"s" * 32, "HS256", "shared"),
        "no signature": confused.encode(b"{}", "", "none"),
        "SHA-512, which is not in the list": token(script, algorithm="RS512"),
    }.items():
        with pytest.raises(TokenRefused) as caught:
            provider.machine(each)
        assert caught.value.reason == "token-algorithm", what
    with pytest.raises(TokenRefused) as caught:
        provider.machine(token(script, exp=now - 10))
    assert caught.value.reason == "token-expired"
    for noise in ("", "x", "a.b.c", "ü", "." * 100, "e30.e30."):
        with pytest.raises(TokenRefused):
            provider.machine(noise)


def test_a_person_is_who_the_id_token_says(script: Scripted) -> None:
    provider = Provider(settings_for(script.issuer))
    good = {"aud": "pacs", "nonce": "n", "roles": ["admin", "auditor", "root", 7]}
    assert provider.person(token(script, **good), "n", "").roles == {Role.ADMIN, Role.AUDITOR}
    for wrong in (
        {"nonce": "other"},
        {"nonce": None},
        {"aud": "api"},
        {"aud": ["pacs", "other"]},
        {"azp": "other"},
        {"iat": None},
    ):
        with pytest.raises(TokenRefused):
            provider.person(token(script, **{**good, **wrong}), "n", "")
    script.about["userinfo_endpoint"] = f"{script.issuer}/userinfo"
    bare = token(script, **{**good, "roles": None})
    for subject, found in (("modality-7", {Role.CLINICIAN}), ("somebody else", None)):
        script.body["/userinfo"] = json.dumps({"sub": subject, "roles": "clinician"}).encode()
        asked = Provider(settings_for(script.issuer))
        if found:
            assert asked.person(bare, "n", "access").roles == found
        else:
            with pytest.raises(TokenRefused):
                asked.person(bare, "n", "access")


def test_keys_rotate_and_forged_names_of_keys_do_not_make_us_ask(script: Scripted) -> None:
    provider = Provider(settings_for(script.issuer))
    assert provider.machine(token(script)).roles
    for number in range(50):
        with pytest.raises(TokenRefused):
            provider.machine(token(script, OTHER, kid=f"k{number}"))
    assert script.asked.count("/keys") == 1, "asked a moment ago"
    script.keys = [json.loads(RSAAlgorithm.to_jwk(OTHER.public_key())) | {"kid": "new"}]
    provider._looked -= 60.0
    provider._fetched -= 60.0
    assert provider.machine(token(script, OTHER, kid="new")).roles
    assert provider.machine(token(script, OTHER, kid=None)).roles, "the only key there is"
    with pytest.raises(TokenRefused):
        provider.machine(token(script))
    assert script.asked.count("/keys") == 2


def test_a_provider_that_is_away_or_wrong(script: Scripted) -> None:
    good = token(script)
    provider = Provider(settings_for(script.issuer))
    assert provider.machine(good).roles
    script.body["/keys"] = b"[]"
    provider._fetched -= 2 * 3600.0  # older than what is fresh: asked again, in vain, and the old keys count
    provider._looked -= 2 * 3600.0
    assert provider.machine(good).roles and script.asked.count("/keys") == 2
    provider._fetched -= 24 * 3600.0
    provider._looked -= 24 * 3600.0
    with pytest.raises(Unavailable):
        provider.machine(good)
    about = "/.well-known/openid-configuration"
    for body in (
        {"/keys": b'{"keys": []}'},
        {"/keys": b"x"},
        {"/keys": b" " * (2 << 20)},
        {about: b"null"},
        {about: json.dumps({"issuer": script.issuer}).encode()},
        {about: json.dumps({"issuer": "https://else.example", "jwks_uri": f"{script.issuer}/keys"}).encode()},
        {about: json.dumps({"issuer": script.issuer, "jwks_uri": "http://else.example/keys"}).encode()},
    ):
        script.body = body
        with pytest.raises(Unavailable) as caught:
            Provider(settings_for(script.issuer)).machine(good)
        assert caught.value.reason == "identity-provider"
    away = Provider(settings_for("http://127.0.0.1:9"))
    for _ in range(2):
        with pytest.raises(Unavailable):
            away.machine(good)


@pytest.mark.parametrize("part", ["head", "body"])
def test_a_provider_that_drips_meets_a_deadline(monkeypatch: pytest.MonkeyPatch, part: str) -> None:
    monkeypatch.setattr("service.oidc.TIMEOUT_SECONDS", 0.5)
    head = b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n"
    ended = threading.Event()

    def drip(server: socket.socket) -> None:
        connection, _ = server.accept()
        with connection, suppress(OSError):
            connection.recv(1 << 16)
            connection.sendall(head[:10] if part == "head" else head)
            while not ended.wait(0.05):  # each byte well within a timeout for a read
                connection.sendall(b"x")

    with socket.create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=drip, args=(server,), daemon=True).start()
        try:
            with pytest.raises(Unavailable, match="TimeoutError"):
                Provider(settings_for(f"http://127.0.0.1:{server.getsockname()[1]}"))._fetch()
        finally:
            ended.set()


def test_a_name_that_is_looked_up_without_end_meets_it_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.oidc.TIMEOUT_SECONDS", 0.5)
    ended, answered = threading.Event(), []

    def hang(*_: object, **__: object) -> list[Any]:
        ended.wait(120)
        answered.append(True)
        return []

    monkeypatch.setattr(socket, "getaddrinfo", hang)
    try:
        with pytest.raises(Unavailable, match="TimeoutError"):
            Provider(settings_for("https://idp.example"))._fetch()
        assert not answered, "nobody waited for the lookup"
    finally:
        ended.set()


def test_who_asks_while_a_provider_hangs_is_told_so_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, begun = FakeClock(1000.0), []
    monkeypatch.setattr("service.oidc.time", SimpleNamespace(monotonic=clock))
    provider = Provider(settings_for("https://idp.example"))

    def hang() -> None:
        begun.append(clock())
        clock.advance(TIMEOUT_SECONDS)  # its deadline
        if len(begun) > 1:
            with pytest.raises(Unavailable):
                provider.metadata()  # another thread's: it waits for nobody
        raise Unavailable("identity-provider", "hangs")

    monkeypatch.setattr(provider, "_fetch", hang)
    for _ in range(3):  # those who had waited for the first
        with pytest.raises(Unavailable):
            provider.metadata()
    assert begun == [1000.0]
    clock.advance(TIMEOUT_SECONDS)
    with pytest.raises(Unavailable):
        provider.metadata()
    assert len(begun) == 2


def test_claims_by_name_path_and_mapping(script: Scripted) -> None:
    mapped = settings_for(
        script.issuer,
        oidc_roles_claims="realm_access.roles,https://pacs/groups,scope",
        oidc_roles={"CN=PACS Admins,OU=IT": "admin", "readers": "clinician", "store": "service"},
    )
    base = {"sub": "x" * 100, "exp": 1}
    claims = {
        **base,
        "realm_access": {"roles": ["readers", "admin"]},
        "scope": "openid store",
        "https://pacs/groups": [],
    }
    principal = principal_from(mapped, claims)
    assert principal.roles == {Role.CLINICIAN, Role.SERVICE}, "their 'admin' is not ours"
    assert (
        len(principal.subject) == 64 and principal.subject != principal_from(mapped, {**base, "sub": "x" * 99}).subject
    )
    assert principal_from(mapped, {**base, "https://pacs/groups": "CN=PACS Admins,OU=IT"}).roles == {Role.ADMIN}
    for odd in (None, 7, {"a": 1}, [["readers"]], [None], "realm_access"):
        assert principal_from(mapped, {**base, "realm_access": odd, "scope": odd}).roles == set()


def test_settings_that_are_refused() -> None:
    assert provider_of(load_settings()) is None
    with pytest.raises(PolicyRefused, match="CLIENT_ID"):
        provider_of(load_settings(oidc_issuer="https://idp.example"))
    for wrong in (
        {"oidc_issuer": "http://idp.example"},
        {"oidc_issuer": "https://user:pw@idp.example"},
        {"oidc_algorithms": "HS256"},
        {"oidc_algorithms": "none"},
        {"oidc_algorithms": ""},
        {"oidc_roles": {"x": "root"}},
        {"rate_logins": "many"},
        {"http_public_url": "http://pacs.example"},
        {"http_public_url": "https://pacs.example/path"},
        {"http_proxy_addresses": "0.0.0.0/0"},
    ):
        with pytest.raises(ValidationError):
            load_settings(**wrong)
    secret = load_settings(oidc_issuer="https://idp.example", oidc_client_id="x", oidc_client_secret="hush")
    assert "hush" not in repr(secret) + str(secret)
