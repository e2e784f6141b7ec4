"""The guard of every route: limits, refusals that cost no commit each, sessions that end, HTTPS and proxies."""

from __future__ import annotations

import asyncio
import re
import secrets
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
from fastapi.testclient import TestClient

from gateway import metrics
from gateway.audit import tail
from gateway.bootstrap import Gateway, build
from gateway.errors import TooMany
from gateway.jobs import MemoryQueue
from gateway.settings import load_settings
from gateway.tokens import mint_token
from service.api import create_app
from service.https import proxy_options, serve_https, serve_the_proxy
from service.throttle import Throttle
from tests.certificates import Authority
from tests.integration.test_service_api import serving
from tests.running import until

pytestmark = pytest.mark.integration
Make = Callable[..., Gateway]


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    made: list[Gateway] = []

    def one(**changes: Any) -> Gateway:
        settings = load_settings(home=tmp_path / "home", watermark_bytes=0, **changes)
        made.append(build(settings, queue=MemoryQueue()))
        return made[-1]

    yield one
    for gateway in made:
        gateway.close()


def client(gateway: Gateway) -> TestClient:
    return TestClient(create_app(gateway), follow_redirects=False)


def bearer(gateway: Gateway, role: str = "admin", who: str = "me") -> dict[str, str]:
    return {"Authorization": f"Bearer {mint_token(gateway, role, who)}"}


def failed(gateway: Gateway) -> list[tuple[str, int]]:
    rows = tail(gateway.index, 200)
    return [(row["detail"]["reason"], row["detail"]["count"]) for row in rows if row["event"] == "login-failed"]


def test_who_asks_too_often_waits_and_nobody_else(make: Make) -> None:
    gateway = make(rate_requests="3/hour", rate_refused="4/hour", rate_logins="2/hour")
    web = client(gateway)
    mine, theirs = bearer(gateway), bearer(gateway, who="other")
    assert [web.get("/api/status", headers=mine).status_code for _ in range(4)] == [200, 200, 200, 429]
    told = web.get("/api/status", headers=mine)
    assert told.json()["reason"] == "too-many-requests" and 1 <= int(told.headers["retry-after"]) <= 3600
    assert web.get("/api/status", headers=theirs).status_code == 200
    bad = {"Authorization": "Bearer x"}
    assert [web.get("/api/status", headers=bad).status_code for _ in range(6)] == [401] * 4 + [429] * 2
    assert web.get("/api/status", headers=theirs).status_code == 200, "from the same address"
    assert [web.post("/login", data={"token": "x"}).status_code for _ in range(3)] == [429] * 3  # bad ones, above
    assert [web.get("/healthz").status_code for _ in range(9)] == [200] * 9


def test_bad_tokens_are_counted_and_cost_one_line(make: Make) -> None:
    gateway = make()
    with client(gateway) as web:
        for _ in range(40):
            assert web.get("/api/status", headers={"Authorization": "Bearer x"}).status_code == 401
        assert web.get("/api/audit", headers=bearer(gateway)).status_code == 403
        assert until(lambda: len(failed(gateway)) == 2)
    assert sorted(failed(gateway)) == [("role-not-allowed", 1), ("token-invalid", 1), ("token-invalid", 39)]


def test_requests_of_nobody_are_counted_and_forged_cookies_read_nothing(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    gateway = make(rate_refused="20/hour")
    read: list[str] = []
    known = gateway.index.session_of
    monkeypatch.setattr(
        gateway.index, "session_of", lambda cookie, *_, **more: read.append(cookie) or known(cookie, 60)
    )
    page = {"Accept": "text/html"}
    with client(gateway) as web:
        before = metrics.REFUSED.labels(source="http", reason="token-missing")._value.get()
        for _ in range(30):
            assert web.get("/api/status").json()["reason"] == "token-missing"
        assert metrics.REFUSED.labels(source="http", reason="token-missing")._value.get() == before + 30
        assert web.get("/admin", headers=page).headers["location"].startswith("/login")  # led there: no refusal
        forged = [secrets.token_urlsafe(32) for _ in range(18)] + ["x", "not one of ours"]
        for value in forged:
            web.cookies.set("palimpsest", value)
            assert web.get("/api/status").status_code == 401
        assert web.get("/api/status").status_code == 429 and read == []
        for _ in range(30):  # people of one address with cookies of an older build
            led = web.get("/admin", headers=page | {"Cookie": "palimpsest=" + secrets.token_urlsafe(32)})
            assert led.status_code == 303 and led.headers["location"].startswith("/login")
            assert "palimpsest=" in led.headers["set-cookie"] and "Max-Age=0" in led.headers["set-cookie"]
        web.cookies.clear()
        assert web.post("/login", data={"token": mint_token(gateway, "admin", "root")}).status_code == 303
        assert web.get("/api/status").status_code == 200 and len(read) == 1, "from the same address"
        assert web.get("/api/status", headers={"Sec-Fetch-Site": "cross-site"}).status_code == 401
        other = web.get("/admin", headers=page | {"Sec-Fetch-Site": "same-site"})
        assert other.status_code == 303 and "set-cookie" not in other.headers, "a good one stays"
        gateway.index.sessions_end("root", "admin")
        assert web.get("/api/status").status_code == 401
        assert until(lambda: len(failed(gateway)) == 4)
    found = {reason: sum(count for each, count in failed(gateway) if each == reason) for reason, _ in failed(gateway)}
    assert found == {"token-missing": 30, "session-forged": 21, "cross-site": 1, "session-over": 1}
    assert len(failed(gateway)) == 6, "the first of a kind, and the rest as one"


def test_another_sites_page_cannot_sign_anybody_out(make: Make) -> None:
    web = client(make())
    for headers in ({"Sec-Fetch-Site": "cross-site"}, {"Sec-Fetch-Site": "same-site"}, {"Origin": "https://other"}):
        told = web.post("/logout", headers=headers)  # a browser sends no Lax cookie along, and would take a new one
        assert (told.status_code, told.json()["reason"]) == (403, "csrf") and "set-cookie" not in told.headers
    assert web.post("/logout").status_code == 303


@pytest.mark.parametrize("path", ["/admin/events?page=overview", "/api/events"])
def test_a_stream_ends_when_its_session_does(make: Make, monkeypatch: pytest.MonkeyPatch, path: str) -> None:
    monkeypatch.setattr("service.admin.FRESH_SECONDS", 0.1)
    monkeypatch.setattr("service.ledger.ASK_SECONDS", 0.1)
    gateway = make()
    with serving(gateway) as base, httpx.Client(base_url=base, timeout=120) as web:

        def stream(end: Callable[[], object], **headers: str) -> None:
            with web.stream("GET", path, headers={"Accept": "text/event-stream", **headers}) as answer:
                assert answer.status_code == 200
                lines = answer.iter_lines()
                assert next(lines).startswith("retry")
                end()
                list(lines)  # to its end, long before STREAM_SECONDS

        assert web.post("/login", data={"token": mint_token(gateway, "admin", "root")}).status_code == 303
        csrf = re.search(r'name="csrf" value="([0-9a-f]+)"', web.get("/login").text)
        assert csrf is not None
        stream(lambda: httpx.post(f"{base}/logout", data={"csrf": csrf[1]}, cookies=dict(web.cookies), timeout=120))
        web.cookies.clear()
        stream(lambda: gateway.keys.rotate("token"), **bearer(gateway))


def test_a_stream_does_not_ask_at_each_tick(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    gateway, asked, ticks = make(poll_seconds=0.01), [], threading.Semaphore(0)

    async def may_go_on(request: object) -> bool:
        asked.append(request)
        return False

    monkeypatch.setattr("service.ledger.may_go_on", may_go_on)
    monkeypatch.setattr("service.ledger.ASK_SECONDS", 3600.0)
    monkeypatch.setattr(gateway.index, "study_events", lambda *_: ticks.release() or [])
    headers = bearer(gateway) | {"Accept": "text/event-stream"}
    with serving(gateway) as base, httpx.stream("GET", f"{base}/api/events", headers=headers, timeout=60) as answer:
        assert all(ticks.acquire(timeout=60) for _ in range(10)) and asked == []
        monkeypatch.setattr("service.ledger.ASK_SECONDS", 0.0)
        list(answer.iter_lines())  # asked now, and over
    assert len(asked) == 1


def test_who_asks_at_once_whether_we_are_ready_shares_one_look(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    gateway, go = make(), threading.Event()
    looks: list[int] = []
    app = create_app(gateway)

    def slow() -> None:
        looks.append(1)
        go.wait(120)

    monkeypatch.setattr(gateway.index, "ping", slow)

    async def ask() -> list[int]:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://here") as web:
            asked = [asyncio.ensure_future(web.get("/readyz")) for _ in range(20)]
            while not looks:
                await asyncio.sleep(0.01)
            asked[0].cancel()  # who goes away takes nobody's answer along
            go.set()
            return [each.status_code for each in await asyncio.gather(*asked[1:])]

    assert asyncio.run(ask()) == [200] * 19 and len(looks) < 4
    assert client(gateway).get("/readyz").status_code == 200


def test_one_subject_holds_no_more_than_its_share_of_streams(make: Make) -> None:
    gateway = make()
    web = client(gateway)
    web.app.state.streams.update(("me", object()) for _ in range(16))  # type: ignore[attr-defined]
    for path in ("/admin/events?page=overview", "/api/events"):
        answer = web.get(path, headers={**bearer(gateway), "Accept": "text/event-stream"})
        assert (answer.status_code, answer.text) == (200, "retry: 20000\n\n"), path


def test_flower_is_asked_by_straight_paths_alone(make: Make) -> None:
    gateway = make(flower=True)
    web, mine = client(gateway), bearer(gateway)
    for path in ("api/workers", "/api/workers", "x/%2e%2e/api/workers", "%2e/login"):
        assert web.get(f"/admin/flower/{path}", headers=mine).status_code == 404, path
    assert web.get("/admin/flower/workers", headers=mine).status_code == 503  # there is none


def test_limits_of_several_processes_without_redis_are_each_ones_own(make: Make) -> None:
    throttle = Throttle(make(rate_requests="2/hour", http_processes=2).settings)  # nobody serves that socket
    throttle.count("request", "a")
    throttle.count("request", "a")
    with pytest.raises(TooMany):
        throttle.count("request", "a")


def test_sessions_end_by_time_by_rest_and_with_the_key(make: Make) -> None:
    gateway = make(session_seconds=7200, session_idle_seconds=600)
    began, late = time.time(), [0.0]
    gateway.index.now = lambda: began + late[0]

    def signed_in() -> TestClient:
        web = client(gateway)
        assert web.post("/login", data={"token": mint_token(gateway, "admin", "root")}).status_code == 303
        return web

    resting, working, rotated = signed_in(), signed_in(), signed_in()
    assert len({each.cookies["palimpsest"] for each in (resting, working, rotated)}) == 3
    for late[0] in range(0, 7200, 500):
        assert working.get("/api/status").status_code == 200
    assert resting.get("/api/status").status_code == 401
    late[0] = 7201.0
    assert working.get("/api/status").status_code == 401
    late[0] = 0.0
    again = signed_in()
    assert again.get("/api/status").status_code == 200
    assert gateway.index.sessions_end("root", "admin") >= 1 and again.get("/api/status").status_code == 401
    last = signed_in()
    gateway.keys.rotate("token")
    assert last.get("/api/status").status_code == 401
    with gateway.index.read() as conn:
        kept = str(conn.exec_driver_sql("SELECT * FROM session").all())
    assert last.cookies["palimpsest"] not in kept


def test_without_an_identity_provider_production_says_so(make: Make) -> None:
    gateway = make(profile="production")
    web = client(gateway)
    page = web.get("/login").text
    assert "PALIMPSEST_OIDC_ISSUER" in page and "<textarea" not in page and "/login/start" not in page
    told = web.get("/api/status", headers={"Authorization": "Bearer x.y.z"})
    assert told.status_code == 401 and "PALIMPSEST_OIDC_ISSUER" in told.json()["detail"]
    assert web.post("/login", data={"token": "x"}).status_code == 401
    assert web.get("/login/start").json()["reason"] == "no-identity-provider"
    assert web.get("/healthz").status_code == 200


def test_pages_and_answers_carry_their_policy(make: Make) -> None:
    web = client(make())
    for path, script in (("/login", False), ("/admin/style.css", True), ("/healthz", False), ("/nowhere", False)):
        policy = web.get(path).headers["content-security-policy"]
        assert ("script-src 'self'" in policy) == script and "frame-ancestors 'none'" in policy, path
        assert "unsafe" not in policy
    headers = web.get("/healthz").headers
    assert headers["referrer-policy"] == "same-origin" and headers["x-content-type-options"] == "nosniff"
    assert "strict-transport-security" not in headers
    for path in ("/login", "/viewer/"):
        assert '<meta name="referrer" content="same-origin">' in web.get(path).text, path


def test_https_with_a_certificate_that_is_renewed_and_a_proxy_that_is_believed(make: Make, tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    first = authority.issue("pacs")
    gateway = make(
        profile="production", http_tls_cert=first.certificate, http_tls_key=first.key, http_proxy="trusted",
        http_proxy_addresses="127.0.0.1",
    )  # fmt: skip
    app = create_app(gateway)
    config = uvicorn.Config(app, port=0, log_config=None, **proxy_options(gateway.settings))
    serve_https(config, gateway.settings)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    try:
        assert until(lambda: server.started)
        port = server.servers[0].sockets[0].getsockname()[1]
        trusting = ssl.create_default_context(cafile=str(authority.file))
        answer = httpx.get(f"https://127.0.0.1:{port}/healthz", verify=trusting, timeout=120)
        assert answer.status_code == 200 and answer.headers["strict-transport-security"].startswith("max-age=")

        def serial() -> int:
            with (
                socket.create_connection(("127.0.0.1", port)) as plain,
                trusting.wrap_socket(plain, server_hostname="127.0.0.1") as secure,
            ):
                assert secure.version() in ("TLSv1.2", "TLSv1.3")
                return int(secure.getpeercert()["serialNumber"], 16)  # type: ignore[index, arg-type]

        before = serial()
        authority.issue("pacs")  # the same files
        assert serial() != before
        old = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        old.load_verify_locations(authority.file)
        old.maximum_version = ssl.TLSVersion.TLSv1_1
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"https://127.0.0.1:{port}/healthz", verify=old)
    finally:
        server.should_exit = True
        thread.join(120)


def test_forwarded_headers_count_from_the_trusted_proxy_alone() -> None:
    for settings, believed in (
        (load_settings(), False),
        (load_settings(http_proxy="trusted", http_proxy_addresses="192.0.2.1"), False),
        (load_settings(http_proxy="trusted"), True),
    ):
        heard: list[Any] = []

        async def app(scope: Any, receive: Any, send: Any, heard: list[Any] = heard) -> None:
            heard.append((scope["client"][0], scope["scheme"]))

        config = uvicorn.Config(app, lifespan="off", log_config=None, **proxy_options(settings))
        config.load()
        scope = {
            "type": "http", "client": ("127.0.0.1", 1), "scheme": "http", "path": "/", "method": "GET",
            "headers": [(b"x-forwarded-for", b"198.51.100.7"), (b"x-forwarded-proto", b"https")],
        }  # fmt: skip
        asyncio.run(config.loaded_app(scope, None, None))  # type: ignore[arg-type]
        assert heard == [("198.51.100.7", "https") if believed else ("127.0.0.1", "http")]


def test_behind_a_trusted_proxy_nobody_else_is_answered_in_clear(make: Make) -> None:
    gateway = make(profile="production", http_host="0.0.0.0", http_proxy="trusted", http_proxy_addresses="192.0.2.0/28")
    headers = {"X-Forwarded-For": "198.51.100.7", "X-Forwarded-Proto": "https"}

    def asked(peer: str, path: str, **changes: Any) -> httpx.Response:
        settings = gateway.settings.model_copy(update=changes)
        config = uvicorn.Config(create_app(gateway), lifespan="off", log_config=None, **proxy_options(settings))
        config.load()
        serve_the_proxy(config, settings)

        async def ask() -> httpx.Response:
            transport = httpx.ASGITransport(config.loaded_app, client=(peer, 1))
            async with httpx.AsyncClient(transport=transport, base_url="http://198.51.100.9") as web:
                return await web.get(path, headers=headers)

        return asyncio.run(ask())

    for peer in ("192.0.2.9", "127.0.0.1", "::1", "198.51.100.9"):  # the last: the address that is come to
        assert asked(peer, "/login").status_code == 200, peer
    for peer in ("192.0.2.16", "203.0.113.9", "2001:db8::1", "no address"):
        for path in ("/login", "/api/status", "/healthz/x"):
            told = asked(peer, path)
            assert (told.status_code, told.json()["reason"]) == (403, "not-by-proxy"), peer
            assert "PALIMPSEST_HTTP_PROXY_ADDRESSES" in told.json()["detail"]
        assert asked(peer, "/healthz").status_code == 200, "a probe of the orchestrator"
        assert asked(peer, "/login", http_tls_cert=Path("c.pem")).status_code == 200, "over TLS of our own"
        assert asked(peer, "/login", http_proxy="").status_code == 200
