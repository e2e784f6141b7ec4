"""The admin pages over a real gateway: what they show and never show, who may see which, the one picture for all, the
stream; and in a headless Chromium: live, by keyboard, on a phone, light and dark, without script.
"""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import subprocess
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import psutil
import pytest
from fastapi.testclient import TestClient
from sqlalchemy import event

from gateway import audit
from gateway.bootstrap import Gateway
from gateway.instance import ForwardState
from gateway.pseudonym import pseudonym_accession
from gateway.tokens import mint_token
from service.admin import PAGES
from service.api import create_app
from service.board import Board
from tests.admin_demo import arrive, carry, demo_gateway, fill
from tests.fakes import part10, take_in
from tests.integration.test_service_api import serving
from tests.integration.test_viewer import PROGRAMS, Seen
from worker.deid_values import dummy_value
from worker.indexing import index_instance

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytestmark = pytest.mark.integration
PATIENCE_MS = 120_000
AXE = "axe-core@4.11.1"  # MPL-2.0; https://www.npmjs.com/package/axe-core; for tests only


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Gateway, dict[str, Any]]]:
    gateway = demo_gateway(tmp_path_factory.mktemp("admin") / "home")
    yield gateway, fill(gateway)
    gateway.close()


@pytest.fixture
def empty(tmp_path: Path) -> Iterator[Gateway]:
    gateway = demo_gateway(tmp_path / "home")
    yield gateway
    gateway.close()


def asking(gateway: Gateway, role: str = "admin") -> TestClient:
    headers = {"Authorization": f"Bearer {mint_token(gateway, role, 'test')}"}
    return TestClient(create_app(gateway), headers=headers, follow_redirects=False, raise_server_exceptions=False)


def all_pages(done: list[int]) -> list[str]:
    found = [path for path, _, _ in PAGES.values()]
    return [*found, f"/admin/instances/{done[0]}", f"/admin/instances/{done[9]}", "/admin/instances?state=ARCHIVED"]


def test_no_page_names_a_patient_or_an_original_uid(filled: tuple[Gateway, dict[str, Any]]) -> None:
    gateway, facts = filled
    known = {uid for row in gateway.index.recent(100) for uid in (row.sop_uid, row.study_uid, row.series_uid) if uid}
    with asking(gateway) as web:
        for path in all_pages(facts["done"]):
            answer = web.get(path)
            assert answer.status_code == 200, path
            text = answer.text
            # whole words: a token of the form can have such letters by chance
            assert not re.search(r"(?<![\w-])(?:Doe|Jane)(?![\w-])", text), path
            # the demo's study UIDs are short: whole words only
            assert not [uid for uid in known if re.search(rf"(?<![0-9.]){re.escape(uid)}(?![0-9.])", text)], path
            assert "style=" not in text and "<style" not in text and "onclick" not in text
            assert re.findall(r"<script[^>]*>[^<]", text) == [] and "http://" not in text
            assert "script-src 'self'" in answer.headers["content-security-policy"]
            assert "unsafe" not in answer.headers["content-security-policy"]
            assert text.count("<h1") == text.count("<main") == 1 and 'href="#main"' in text and 'lang="en"' in text


def test_an_auditor_sees_the_trail_and_nothing_else(filled: tuple[Gateway, dict[str, Any]]) -> None:
    with asking(filled[0], "auditor") as web:
        page = web.get("/admin/audit")
        assert page.status_code == 200 and "dead-letter" in page.text
        assert "things for you" not in page.text and 'href="/admin/failures"' not in page.text
        for path in ("/admin", "/admin/instances", "/admin/instances/1", "/admin/system", "/admin/events?page=audit"):
            assert web.get(path).status_code == 403
        assert web.post("/admin/act", data={"do": "dead"}).status_code == 403


def test_the_first_page_says_what_needs_a_person(filled: tuple[Gateway, dict[str, Any]], empty: Gateway) -> None:
    with asking(filled[0]) as web:
        text = web.get("/admin").text
    for words in (
        "2 open alerts, 1 critical.", "dead letters for a person to replay.", "instances failed and will be tried",
        "research is left alone: association-rejected.", "No proven backup holds every key of the ring.",
        "The oldest instance has waited for",
    ):  # fmt: skip
        assert words in text
    empty.keys.backup(empty.settings.home / "backup", "a long enough passphrase", log2_n=10)
    with asking(empty) as web:
        assert "Nothing needs you" in web.get("/admin").text
        assert 'href="/admin/instances?state=RECEIVED"' in web.get("/admin").text


def test_all_viewers_share_one_picture(empty: Gateway) -> None:
    arrive(empty)
    now, asked = [0.0], []
    board = Board(empty, clock=lambda: now[0])
    event.listen(empty.index._engine, "before_cursor_execute", lambda *given: asked.append(given[2]))
    first = board.picture()
    once = len(asked)
    viewers = [threading.Thread(target=board.picture) for _ in range(20)]
    for each in viewers:
        each.start()
    for each in viewers:
        each.join()
    assert board.picture() is first and len(asked) == once > 10
    now[0] += 3.1
    assert board.picture().number == 2 and once < len(asked) < 2 * once  # what changes slowly was not asked again
    assert board.picture(fresh=True).number == 3


def test_a_gateway_without_its_database_still_says_so(empty: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    from gateway.errors import Unavailable

    def gone(*_: object) -> None:
        raise Unavailable("database-unavailable", "the database did not answer")

    with asking(empty) as web:
        for name in ("counts", "ping"):
            monkeypatch.setattr(empty.index, name, gone)
        answer = web.get("/admin/destinations")
    assert answer.status_code == 503
    assert "The gateway cannot be looked at: database-unavailable." in answer.text
    assert "database-unavailable</span> database" in answer.text


def test_the_life_of_an_instance_has_its_steps_and_proofs(filled: tuple[Gateway, dict[str, Any]]) -> None:
    gateway, facts = filled
    row = gateway.index.get(facts["done"][15])
    with asking(gateway) as web:
        text = web.get(f"/admin/instances/{row.id}").text
        steps = re.findall(r'<li class="(\w+)"><div class="head"><b>([^<]+)</b>', text)
        assert steps == [
            ("done", "received"), ("done", "indexed"), ("done", "coded"), ("done", "proven"), ("done", "archived"),
            ("done", "forwarded to pacs"), ("open", "released from the spool"),
        ]  # fmt: skip
        assert "the received file, byte for byte" in text and text.count(row.digest) == 2
        assert "forwarded" in text and "D0123456789ABCDE" in text and "Explicit VR Little Endian" in text
        for wrong in ("999999", "x", "9" * 30, "-1", "1%00"):
            assert web.get(f"/admin/instances/{wrong}").status_code == 404, wrong
        for query in ("state=x", "passthrough=", "passthrough=" + "x" * 99, "state=RECEIVED%00"):
            assert web.get(f"/admin/instances?{query}").status_code == 400, query
        for query in ("instance=x", "since=yesterday", "before=-1"):
            assert web.get(f"/admin/audit?{query}").status_code == 400, query


def test_search_leads_to_the_one_and_is_audited_without_its_text(empty: Gateway) -> None:
    accession = dummy_value(0x00080050, "SH", "A-4711", empty.keys.pseudonym_key())
    assert accession == pseudonym_accession("A-4711", empty.keys.pseudonym_key())
    data = part10("1.2.3.4.5", study="1.2.3.9")
    element = bytes.fromhex("0800500053480600") + b"A-4711"
    at = data.index(bytes.fromhex("0800600043530200"))
    row = take_in(empty, data[:at] + element + data[at:]).row
    index_instance(empty, row.id)
    other = arrive(empty, study="1.2.3.9")
    with asking(empty) as web:
        for text in ("1.2.3.4.5", "A-4711", str(accession), row.digest, f"#{row.id}"):
            answer = web.post("/admin/search", data={"q": text})
            assert answer.headers.get("location") == f"/admin/instances/{row.id}", text
        listed = web.post("/admin/search", data={"q": "1.2.3.9"})
        assert listed.status_code == 200 and f">#{row.id}<" in listed.text and f">#{other.id}<" in listed.text
        assert "Found: 0" in web.post("/admin/search", data={"q": "<b>nobody</b>"}).text
    trail = [each for each in audit.tail(empty.index, 50) if each["event"] == "admin-search"]
    assert [each["detail"]["count"] for each in trail] == [0, 2, 1, 1, 1, 1, 1]
    assert "A-4711" not in json.dumps(trail) and "1.2.3" not in json.dumps(trail)


def test_replay_of_one_some_those_of_a_reason_and_all(filled: tuple[Gateway, dict[str, Any]]) -> None:
    gateway, facts = filled

    def dead() -> list[int]:
        return [row.id for row in gateway.index.forwards(state=ForwardState.DEAD)]

    with asking(gateway) as web:

        def act(**form: str) -> str:
            return str(web.post("/admin/act", data=form).headers["location"])

        left = dead()
        assert act(do=f"forward:{left[0]}", page="failures") == "/admin/failures?done=forwards&n=1"
        ticked = {f"f{left[1]}": "on", f"f{left[2]}": "on", "fx": "on"}
        assert act(do="chosen", **ticked) == "/admin?done=forwards&n=2"
        reason = next(group.reason for group in gateway.index.failures() if group.kind == "dead-letter")
        before = len(dead())
        assert "done=forwards" in act(do=f"dead:pacs:{reason}") and 0 < len(dead()) < before
        assert act(do="dead").startswith("/admin?done=forwards&n=") and dead() == []
        assert act(do="dead") == "/admin?done=none"
        number = facts["failing"][0]
        assert act(do=f"instance:{number}", instance=str(number)).startswith(f"/admin/instances/{number}?done=failures")
        assert act(do="failures:archive-unavailable") == "/admin?done=failures&n=2"
        for wrong in ("alert:x", "alert:999", "choose:999", "commitment:999", "forward:", "instance:x"):
            assert act(do=wrong) == "/admin?done=none", wrong
        assert web.post("/admin/act", data={"do": "drop:table"}).status_code == 403
        assert "/evil" not in act(do="dead", page="//evil")


def test_the_stream_sends_parts_that_changed(filled: tuple[Gateway, dict[str, Any]]) -> None:
    gateway, _ = filled
    headers = {"Authorization": f"Bearer {mint_token(gateway, 'admin', 'root')}"}
    with (
        serving(gateway) as base,
        httpx.stream("GET", f"{base}/admin/events?page=failures", headers=headers, timeout=120) as answer,
    ):
        assert answer.headers["content-type"].startswith("text/event-stream")
        names: list[str] = []
        for line in answer.iter_lines():
            if line.startswith("data: "):
                names.append(json.loads(line[6:])["name"])
            if len(names) == 6:
                break
    assert names == ["pulse", "alerts", "dead", "failures", "conflicts", "quarantine"]
    with asking(gateway) as web:
        assert web.get("/admin/events?page=nothing").status_code == 400
        assert web.head("/admin/events?page=audit").status_code == 200


# --- in Chromium -------------------------------------------------------------------------------------------------


def browser_program() -> str:
    found = next(filter(None, map(shutil.which, PROGRAMS)), None)
    if found is None and os.environ.get("PALIMPSEST_REQUIRE_PEERS") == "1":
        pytest.fail("chromium is required (PALIMPSEST_REQUIRE_PEERS=1)")
    if found is None:
        pytest.skip("needs chromium")
    return found


def axe() -> str:
    """The script, fetched by npm and not run by it; '' where npm gives none."""
    npm = shutil.which("npm")
    if npm is None:
        return ""
    folder = Path(__file__).resolve().parents[2] / "var" / "axe"
    folder.mkdir(parents=True, exist_ok=True)
    packed = folder / f"{AXE.replace('@', '-')}.tgz"
    if not packed.exists():
        command = [npm, "pack", AXE, "--ignore-scripts", "--pack-destination", str(folder)]
        if subprocess.run(command, capture_output=True, timeout=120).returncode:
            return ""
    with tarfile.open(packed) as archive:
        member = archive.extractfile("package/axe.min.js")
        return io.TextIOWrapper(member, "utf-8").read() if member else ""


def signed_in(browser: Browser, base: str, gateway: Gateway, **options: Any) -> tuple[Page, Seen]:
    page = browser.new_context(**options).new_page()
    page.set_default_timeout(PATIENCE_MS)
    seen = Seen(base)
    seen.watch(page)
    page.goto(f"{base}/login?next=%2Fadmin")
    page.fill("#token", mint_token(gateway, "admin", "root"))
    page.get_by_role("button", name="Sign in").click()
    page.wait_for_url(f"{base}/admin")
    return page, seen


@pytest.mark.peers
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_in_a_browser(filled: tuple[Gateway, dict[str, Any]]) -> None:
    program = browser_program()
    from playwright.sync_api import sync_playwright

    gateway, facts = filled
    with serving(gateway) as base, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"], timeout=PATIENCE_MS)
        page, seen = signed_in(browser, base, gateway, viewport={"width": 1180, "height": 800})
        live_and_replayed(page, base, gateway)
        by_keyboard(page, base)
        no_barriers(page, base, facts["done"])
        dark, seen_dark = signed_in(
            browser, base, gateway, viewport={"width": 390, "height": 844}, color_scheme="dark", has_touch=True
        )
        on_a_phone(dark, base, facts["done"])
        plain, seen_plain = signed_in(browser, base, gateway, java_script_enabled=False)
        without_script(plain, base, gateway)
        browser.close()
    assert seen.trouble + seen_dark.trouble + seen_plain.trouble == []


@pytest.mark.peers
@pytest.mark.slow
def test_another_machines_browser_may_sign_in_and_send_forms_over_http(filled: tuple[Gateway, dict[str, Any]]) -> None:
    """To another host a browser sends no Fetch Metadata over HTTP: our forms are known by their Origin."""
    program, gateway = browser_program(), filled[0]
    from playwright.sync_api import sync_playwright

    addresses = [each.address for found in psutil.net_if_addrs().values() for each in found]
    elsewhere = [text for text in addresses if re.fullmatch(r"[0-9.]+", text) and not text.startswith("127.")]
    if not elsewhere:
        pytest.skip("this machine has no address but its own")
    with serving(gateway, elsewhere[0]) as base, sync_playwright() as playwright:
        options = ["--no-sandbox", "--no-proxy-server"]
        browser = playwright.chromium.launch(executable_path=program, args=options, timeout=PATIENCE_MS)
        page, _ = signed_in(browser, base, gateway)
        page.get_by_role("button", name="Sign out").click()
        page.wait_for_url(f"{base}/login")
        browser.close()


def live_and_replayed(page: Page, base: str, gateway: Gateway) -> None:
    """An instance that arrives is seen without a reload; a dead letter is replayed; what was typed and ticked stays."""
    page.get_by_text("live", exact=True).wait_for()
    shown = page.locator("#tile-received")
    before = int(shown.inner_text().replace(",", ""))
    page.evaluate("window.same = true")
    row = carry(gateway, arrive(gateway))
    page.locator("#tile-received", has_text=re.compile(f"^{before + 1:,}$")).wait_for()
    assert page.evaluate("window.same") is True
    forward = gateway.index.forwards(row.id)[0]
    gateway.index.forward_claim(forward.id, "f", 60)
    gateway.index.forward_failed(forward.id, "f", "refused", due_at=None)
    page.goto(f"{base}/admin/failures")
    page.get_by_text("refused").first.wait_for()
    dead = len(gateway.index.dead_letters())
    page.get_by_text("live", exact=True).wait_for()
    page.locator("input[type=checkbox]").first.check()
    gateway.index.alert_raise("test-alert", "browser", "something to see", "warning")
    page.get_by_text("something to see").wait_for()
    assert page.locator("input[type=checkbox]").first.is_checked()
    page.get_by_role("button", name="Replay the chosen").click()
    page.get_by_text("1 dead letter will be sent again.").wait_for()
    assert len(gateway.index.dead_letters()) == dead - 1
    page.get_by_role("link", name="Instances").first.click()
    page.get_by_label("Number, UID, SHA-256").fill("3")
    page.keyboard.press("Enter")
    page.wait_for_url(f"{base}/admin/instances/3")
    assert page.locator("ol.life > li").count() >= 6


AT_FOCUS = """e => [e.textContent.trim().slice(0, 20), getComputedStyle(e).outlineStyle,
    e.getBoundingClientRect().top + scrollY, e.tagName]"""


def by_keyboard(page: Page, base: str) -> None:
    """The skip link comes first and works; every stop is visible and ringed; the order is that of the page."""
    page.goto(f"{base}/admin")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to content"
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "main"
    page.goto(f"{base}/admin/failures")
    stops = []
    for _ in range(18):
        page.keyboard.press("Tab")
        stop = page.evaluate(f"({AT_FOCUS})(document.activeElement)")
        if stops and (stop[3] == "BODY" or stop[0] == stops[0][0]):
            break  # behind the last one
        stops.append(stop)
    names = [stop[0] for stop in stops]
    assert names[0] == "Skip to content" and "Overview" in names and "Acknowledge" in " ".join(names)
    assert all(stop[1] != "none" for stop in stops if stop[3] in ("A", "BUTTON", "SUMMARY")), stops
    tops = [stop[2] for stop in stops[10:]]
    assert all(later >= earlier - 60 for earlier, later in zip(tops, tops[1:], strict=False)), repr(stops)


def no_barriers(page: Page, base: str, done: list[int]) -> None:
    """axe-core finds nothing serious, in light and dark."""
    script = axe()
    if not script and os.environ.get("PALIMPSEST_REQUIRE_PEERS") == "1":
        pytest.fail(f"npm does not give {AXE}")
    for path in ("/admin", "/admin/failures", "/admin/system", f"/admin/instances/{done[9]}") if script else ():
        page.goto(base + path)
        page.evaluate(script)  # the debugger's way in: no script of the page, so its policy does not apply
        for scheme, rules in (("light", "{}"), ("dark", "{runOnly: ['color-contrast']}")):
            page.emulate_media(color_scheme=scheme)  # type: ignore[arg-type]
            found = page.evaluate(
                f"axe.run({rules}).then(r => r.violations.map(v => [v.id, v.impact, v.nodes[0].html]))"
            )
            assert [each for each in found if each[1] in ("serious", "critical")] == [], (path, scheme)
    page.emulate_media(color_scheme="light")


def on_a_phone(page: Page, base: str, done: list[int]) -> None:
    """Nothing is wider than the screen, and it is dark."""
    for path in all_pages(done):
        page.goto(base + path)
        assert page.evaluate("document.documentElement.scrollWidth") <= 390, path
    red, green, blue = page.evaluate("getComputedStyle(document.body).backgroundColor.match(/[0-9]+/g).map(Number)")
    assert max(red, green, blue) < 60


def without_script(page: Page, base: str, gateway: Gateway) -> None:
    """Forms and pages do their work; the page loads itself again."""
    page.goto(f"{base}/admin/failures")
    assert page.locator("h2").all_inner_texts()[:2] == ["Alerts", "Dead letters"]
    alerts = len(gateway.index.alerts())
    page.get_by_role("button", name="Acknowledge").first.click()
    page.get_by_text("1 alert acknowledged.").wait_for()
    assert len(gateway.index.alerts()) == alerts - 1
    assert "15" in (page.locator("meta[http-equiv=refresh]").get_attribute("content") or "")
