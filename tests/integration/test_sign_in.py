"""Signing in by a real identity provider (Glewlwyd), in the production profile: people, machines, refusals."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi.testclient import TestClient

from gateway.audit import tail
from gateway.bootstrap import Gateway, build
from gateway.errors import PolicyRefused
from gateway.jobs import MemoryQueue
from gateway.settings import load_settings
from gateway.tokens import mint_token
from palimpsest.own_token import own_token
from service.api import create_app
from tests.identity_provider import SECRET, IdentityProvider, installed
from tests.running import until

pytestmark = [pytest.mark.integration, pytest.mark.peers]
HERE = "https://pacs.test"
HTML = {"Accept": "text/html"}


@pytest.fixture(scope="module")
def provider(tmp_path_factory: pytest.TempPathFactory) -> Iterator[IdentityProvider]:
    if not installed():
        assert os.environ.get("PALIMPSEST_REQUIRE_PEERS") != "1", "glewlwyd is required"
        pytest.skip("needs glewlwyd")
    with IdentityProvider(tmp_path_factory.mktemp("idp") / "data", HERE) as made:
        made.add_person("house", "radiology", "pacs-admins")
        made.add_person("wilson", "radiology")
        made.add_person("cuddy", "revision")
        made.add_person("visitor", "kitchen")
        yield made


@pytest.fixture
def gateway(provider: IdentityProvider, tmp_path: Path) -> Iterator[Gateway]:
    settings = load_settings(
        home=tmp_path / "home", watermark_bytes=0, profile="production", http_public_url=HERE,
        oidc_issuer=provider.issuer, oidc_client_id="palimpsest", oidc_client_secret=SECRET,
        oidc_scopes="openid palimpsest", oidc_audience="palimpsest", oidc_roles_claims="groups,scope",
        oidc_roles={"radiology": "clinician", "pacs-admins": "admin", "revision": "auditor", "palimpsest": "service"},
    )  # fmt: skip
    made = build(settings, queue=MemoryQueue())
    yield made
    made.close()


def browser(gateway: Gateway) -> TestClient:
    return TestClient(create_app(gateway), base_url=HERE, follow_redirects=False)


def sign_in(web: TestClient, provider: IdentityProvider, name: str, after: str = "") -> httpx.Response:
    there = web.get("/login/start", params={"next": after})
    assert there.status_code == 303
    return web.get(provider.back(provider.signed_in(name), there.headers["location"]))


def csrf(web: TestClient) -> str:
    found = re.search(r'name="csrf" value="([0-9a-f]{64})"', web.get("/login").text)
    assert found
    return found[1]


def events(gateway: Gateway) -> list[tuple[str, str, Any]]:
    return [(row["event"], row["outcome"], row["detail"].get("reason")) for row in tail(gateway.index, 50)]


def test_a_person_signs_in_works_and_signs_out(gateway: Gateway, provider: IdentityProvider) -> None:
    web = browser(gateway)
    led = web.get("/admin", headers=HTML)
    assert (led.status_code, led.headers["location"]) == (303, "/login?next=%2Fadmin")
    form = web.get(led.headers["location"])
    assert "/login/start?next=%2Fadmin" in form.text and 'name="token"' not in form.text

    back = sign_in(web, provider, "house", "/admin")
    assert (back.status_code, back.headers["location"]) == (303, "/admin")
    session = next(each for each in back.headers.get_list("set-cookie") if each.startswith("__Host-palimpsest="))
    assert all(word in session for word in ("HttpOnly", "Secure", "SameSite=lax", "Path=/", "Max-Age="))
    assert "Domain" not in session
    assert web.get("/admin", headers=HTML).status_code == 200
    assert web.get("/api/status").status_code == 200 and web.get("/dicomweb/studies").status_code == 204
    assert web.get("/api/audit").status_code == 403  # no auditor
    assert "strict-transport-security" in web.get("/admin").headers

    refused = web.post("/api/failures/replay", json={"reason": "x"})
    assert (refused.status_code, refused.json()["reason"]) == (403, "csrf")
    value = csrf(web)
    done = web.post("/api/failures/replay", json={"reason": "x"}, headers={"X-CSRF-Token": value})
    assert done.status_code == 404  # let in: there is nothing to replay
    crossed = {"X-CSRF-Token": value, "Sec-Fetch-Site": "same-site"}
    assert web.post("/api/failures/replay", json={"reason": "x"}, headers=crossed).status_code == 401

    out = web.post("/logout", data={"csrf": value})
    there = re.search(r'url=([^"]+)"', out.text)
    assert there and there[1].startswith(provider.issuer + "/end_session?id_token_hint=")
    assert web.get("/api/status").status_code == 401
    names = [event for event, _, _ in events(gateway)]
    assert names.count("login") == 1 and names.count("logout") == 1


def test_roles_come_from_groups(gateway: Gateway, provider: IdentityProvider) -> None:
    reader, auditor, visitor = browser(gateway), browser(gateway), browser(gateway)
    assert sign_in(reader, provider, "wilson", "/admin").headers["location"] == "/viewer/"
    told = reader.get("/admin", headers=HTML)
    assert told.status_code == 403 and "Your role may not do that" in told.text
    assert sign_in(auditor, provider, "cuddy").headers["location"] == "/admin/audit"
    assert auditor.get("/api/audit").status_code == 200 and auditor.get("/dicomweb/studies").status_code == 403
    nobody = sign_in(visitor, provider, "visitor")
    assert nobody.status_code == 401 and "no role here" in nobody.text
    assert visitor.get("/api/status").status_code == 401
    assert until(lambda: ("login-failed", "refused", "no-role") in events(gateway))


def test_a_sign_in_belongs_to_the_browser_that_began_it(gateway: Gateway, provider: IdentityProvider) -> None:
    mine, other = browser(gateway), browser(gateway)
    there = mine.get("/login/start").headers["location"]
    back = provider.back(provider.signed_in("house"), there)
    assert other.get(back).status_code == 401, "a planted answer (login CSRF)"
    assert other.get("/login/start").status_code == 303 and other.get(back).status_code == 401
    assert mine.get(back.replace("state=", "state=x")).status_code == 401
    # the state's cookie is gone after the first answer: an answer counts once, whatever it said
    assert mine.get(back).status_code == 401
    again = provider.back(provider.signed_in("house"), mine.get("/login/start").headers["location"])
    assert mine.get(again).status_code == 303
    assert mine.get(again).status_code == 401, "played again"
    for query in ("?error=access_denied&state=x", "?code=x&state=", "?state=" + "x" * 5000, ""):
        assert mine.get(f"/login/callback{query}").status_code == 401
    assert until(lambda: ("login-failed", "refused", "state") in events(gateway))
    assert sum(reason == "state" for _, _, reason in events(gateway)) <= 2, "one line for all of them"


def test_machines_bring_access_tokens(gateway: Gateway, provider: IdentityProvider) -> None:
    web = browser(gateway)
    headers = {"Authorization": f"Bearer {provider.machine_token()}"}
    assert web.get("/dicomweb/studies", headers=headers).status_code == 204
    assert web.get("/api/audit", headers=headers).status_code == 403
    old = provider.machine_token()
    with pytest.raises(PolicyRefused, match="demo profile only"):
        mint_token(gateway, "admin", "me")
    token = own_token(gateway, "service", "palimpsest-fetch", 60)  # what `palimpsest fetch` sends
    assert web.get("/dicomweb/studies", headers={"Authorization": f"Bearer {token}"}).status_code == 204

    there = web.get("/login/start").headers["location"]
    assert web.get(provider.back(provider.signed_in("house"), there)).status_code == 303
    with gateway.index.read() as conn:
        id_token = conn.exec_driver_sql("SELECT hint FROM session").scalar()
    stranger = browser(gateway)
    as_bearer = stranger.get("/api/status", headers={"Authorization": f"Bearer {id_token}"})
    assert as_bearer.status_code == 401, "an ID token is no permission to call"

    identity = web.app.state.identity  # type: ignore[attr-defined]
    provider.rotate("second")
    identity.provider._fetched -= 60.0  # it is a while since the keys were looked at
    identity.provider._looked -= 60.0
    new = {"Authorization": f"Bearer {provider.machine_token()}"}
    assert web.get("/dicomweb/studies", headers=new).status_code == 204
    refused = web.get("/dicomweb/studies", headers={"Authorization": f"Bearer {old}"})
    assert refused.status_code == 401
