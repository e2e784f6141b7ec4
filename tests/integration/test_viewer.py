"""The viewer: what may be served, who may sign in, and OHIF itself in a headless Chromium."""

from __future__ import annotations

import io
import os
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import numpy as np
import pytest
from fastapi.testclient import TestClient
from numpy.typing import NDArray
from PIL import Image

from gateway.bootstrap import Gateway, build
from gateway.settings import load_settings
from gateway.tokens import mint_token
from gateway.transfer_syntaxes import HTJ2K_RPCL
from gateway.viewer import INTEGRITY, LISTING, installed
from service.api import create_app
from tests import viewer_studies
from tests.integration.test_service_api import serving
from tests.integration.test_service_wado import Working, take_in
from tests.running import ROOT
from worker.transcode import transcode

if TYPE_CHECKING:
    from playwright.sync_api import ConsoleMessage, Page, Request, Response

pytestmark = [pytest.mark.integration, pytest.mark.filterwarnings("ignore::UserWarning")]
#: Where `make viewer` puts it in a checkout.
VIEWER = ROOT / "var" / "viewer"
SHOTS = ROOT / "var" / "viewer-shots"
PROGRAMS = ("chromium", "chromium-browser", "google-chrome")
BROWSER_OPTIONS = ("--no-sandbox", "--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader")
PATIENCE_MS = 120_000


def gateway_at(home: Path, viewer: Path) -> Gateway:
    queue = Working()
    queue.gateway = build(load_settings(home=home, watermark_bytes=1, viewer_folder=viewer), queue=queue)
    return queue.gateway


def small_viewer(folder: Path) -> Path:
    """A viewer of three files and one that is not in its list."""
    folder.mkdir()
    files = {"app.bundle.0123456789abcdef.js": b"let a;", "app.bundle.css": b"p{}", "assets/favicon.ico": b"ico"}
    for name, data in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(data)
    (folder / "secret.js").write_bytes(b"not listed")
    script, style = list(files)[:2]
    listed = ", ".join(f'"{name}": ["{"ab" * 32}", false]' for name in files)
    text = f'{{"integrity": "{INTEGRITY}", "script": "{script}", "style": "{style}", "files": {{{listed}}}}}'
    (folder / LISTING).write_text(text)
    return folder


@pytest.fixture
def gateway(tmp_path: Path) -> Iterator[Gateway]:
    made = gateway_at(tmp_path / "home", small_viewer(tmp_path / "ohif"))
    yield made
    made.close()


@pytest.fixture
def web(gateway: Gateway) -> Iterator[TestClient]:
    with TestClient(create_app(gateway), raise_server_exceptions=False, follow_redirects=False) as client:
        yield client


def sign_in(web: TestClient, gateway: Gateway, role: str = "clinician", **form: str) -> httpx.Response:
    return web.post("/login", data={"token": mint_token(gateway, role, "reader"), **form})


def test_without_a_viewer_the_page_says_how_to_install_it(tmp_path: Path) -> None:
    gateway = gateway_at(tmp_path / "home", tmp_path / "none")
    with TestClient(create_app(gateway), follow_redirects=False) as web:
        assert web.get("/viewer").headers["location"] == "/viewer/"
        answer = web.get("/viewer/")
        assert answer.status_code == 503 and "palimpsest viewer install" in answer.text
        small_viewer(tmp_path / "none")
        assert web.get("/viewer/").status_code == 303  # found without a restart
    gateway.close()


@pytest.mark.parametrize(
    "listing", ["", "[]", "{}", '{"integrity": "sha512-other", "files": {}}', f'{{"integrity": "{INTEGRITY}"}}']
)
def test_a_broken_or_other_installation_is_none(tmp_path: Path, listing: str) -> None:
    (tmp_path / LISTING).write_text(listing)
    assert installed(tmp_path) is None


def test_files_of_the_list_are_served_and_nothing_else(web: TestClient) -> None:
    script = web.get("/viewer/app.bundle.0123456789abcdef.js")
    assert (script.content, script.headers["content-type"]) == (b"let a;", "text/javascript; charset=utf-8")
    assert "immutable" in script.headers["cache-control"]
    assert script.headers["cross-origin-embedder-policy"] == "require-corp"
    assert script.headers["cross-origin-opener-policy"] == "same-origin"
    tag = {"If-None-Match": script.headers["etag"]}
    assert web.get("/viewer/app.bundle.0123456789abcdef.js", headers=tag).status_code == 304
    assert "window.config" in web.get("/viewer/app-config.js").text
    for path in (
        "secret.js",
        LISTING,
        "..%2fpalimpsest.db",
        "%2e%2e/palimpsest.db",
        "a/../../x",
        "assets",
        "//x",
        "a//b",
    ):
        assert web.get(f"/viewer/{path}").status_code in (303, 404), path
        assert b"not listed" not in web.get(f"/viewer/{path}").content


def test_the_cookie_reads_and_does_nothing_else(web: TestClient, gateway: Gateway) -> None:
    ds = take_in(gateway, viewer_studies.colour())
    assert web.get("/viewer/viewer?StudyInstanceUIDs=1.2").headers["location"] == (
        "/login?next=%2Fviewer%2Fviewer%3FStudyInstanceUIDs%3D1.2"
    )
    answer = sign_in(web, gateway, next="/viewer/viewer?StudyInstanceUIDs=1.2")
    assert (answer.status_code, answer.headers["location"]) == (303, "/viewer/viewer?StudyInstanceUIDs=1.2")
    page = web.get("/viewer/")
    assert page.status_code == 200 and "app.bundle.0123456789abcdef.js" in page.text
    assert "'unsafe-eval'" not in page.headers["content-security-policy"]
    assert len(web.get("/dicomweb/studies").json()) == 1
    assert web.head(f"/dicomweb/studies/{ds.StudyInstanceUID}").status_code == 200
    for site in ("cross-site", "same-site"):
        assert web.get("/dicomweb/studies", headers={"Sec-Fetch-Site": site}).status_code == 401
    assert web.get("/dicomweb/studies", headers={"Origin": "https://else.example"}).status_code == 401
    for path in ("/api/status", "/admin", "/metrics", "/api/audit"):
        assert web.get(path).status_code == 403, path  # a clinician's
    assert web.post("/dicomweb/studies", content=b"").status_code == 403
    form = re.search(r'name="csrf" value="([0-9a-f]{64})"', web.get("/login").text)
    assert form and web.post("/logout").json()["reason"] == "csrf"
    assert web.post("/logout", data={"csrf": form[1]}, headers={"Sec-Fetch-Site": "cross-site"}).status_code == 403
    assert web.post("/logout", data={"csrf": form[1]}).status_code == 303
    assert web.get("/dicomweb/studies").status_code == 401


@pytest.mark.parametrize("role", ["admin", "auditor"])
def test_only_who_may_see_images_signs_in(web: TestClient, gateway: Gateway, role: str) -> None:
    answer = sign_in(web, gateway, role, next="/viewer/")
    assert answer.status_code == 303 and answer.headers["location"].startswith("/admin")
    assert web.get("/viewer/").headers["location"].startswith("/login?next=")
    assert web.get("/dicomweb/studies").status_code == 403
    crossed = web.post("/login", data={"token": "x"}, headers={"Sec-Fetch-Site": "cross-site"})
    assert (crossed.status_code, crossed.json()["reason"]) == (403, "csrf")


@pytest.mark.parametrize(
    "after",
    ["https://else.example/", "//else.example", "/viewer//else.example", "/admin", "/viewer/\r\nX: y", "/viewerx"],
)
def test_a_sign_in_leads_to_the_viewer_alone(web: TestClient, gateway: Gateway, after: str) -> None:
    assert sign_in(web, gateway, next=after).headers["location"] == "/viewer/"


# --- OHIF in Chromium --------------------------------------------------------------------------------------------


@dataclass
class Seen:
    """What a page did: trouble, and the media types of the frames it was given."""

    base: str
    trouble: list[str] = field(default_factory=list)
    frames: list[str] = field(default_factory=list)

    def watch(self, page: Page) -> None:
        page.on("console", self._console)
        page.on("pageerror", lambda error: self.trouble.append(f"page error: {error}"))
        page.on("request", self._request)
        page.on("response", self._response)

    def _console(self, message: ConsoleMessage) -> None:
        if message.type == "error":
            self.trouble.append(f"console: {message.text}")

    def _request(self, request: Request) -> None:
        if not request.url.startswith((self.base + "/", "blob:" + self.base, "data:")):
            self.trouble.append(f"another host: {request.url}")

    def _response(self, response: Response) -> None:
        if response.status >= 400:
            self.trouble.append(f"{response.status}: {response.url}")
        if "/frames/" in response.url:
            self.frames.append(response.headers["content-type"])


def browser_program() -> str:
    found = next(filter(None, map(shutil.which, PROGRAMS)), None)
    missing = "chromium" if found is None else "`make viewer`" if installed(VIEWER) is None else ""
    if missing and os.environ.get("PALIMPSEST_REQUIRE_PEERS") == "1":
        pytest.fail(f"{missing} is required (PALIMPSEST_REQUIRE_PEERS=1)")
    if missing:
        pytest.skip(f"needs {missing}")
    assert found
    return found


@pytest.fixture
def full(tmp_path: Path) -> Iterator[Gateway]:
    gateway = gateway_at(tmp_path / "home", VIEWER)
    for data in viewer_studies.ct_series(8):
        take_in(gateway, data)
    for data in viewer_studies.ct_series(3, "htj2k"):
        take_in(gateway, transcode(data, HTJ2K_RPCL))
    take_in(gateway, viewer_studies.colour())
    take_in(gateway, viewer_studies.multiframe())
    yield gateway
    gateway.close()


def picture(page: Page) -> NDArray[np.int16]:
    """The drawn viewport, (rows, columns, RGB)."""
    data = page.locator(".cornerstone-canvas").first.screenshot()
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"), np.int16)


def level(image: NDArray[np.int16], x: float, y: float) -> tuple[int, int, int]:
    """Mean colour around a point of the drawn square; x and y from -1 to 1."""
    half = min(image.shape[:2]) / 2
    row, column = int(image.shape[0] / 2 + y * half), int(image.shape[1] / 2 + x * half)
    red, green, blue = image[row - 3 : row + 4, column - 3 : column + 4].mean((0, 1))
    return round(red), round(green), round(blue)


def open_study(page: Page, base: str, name: str, right: Callable[[NDArray[np.int16]], bool]) -> None:
    page.goto(f"{base}/viewer/viewer?StudyInstanceUIDs={viewer_studies.uid(name)}")
    page.wait_for_selector(".cornerstone-canvas", timeout=PATIENCE_MS)
    for label in ("Skip all", "Confirm and hide"):
        if name == "thorax":  # the tour and the notice, once
            page.get_by_text(label).first.click(timeout=PATIENCE_MS)
    drawn(page, right, name)


def drawn(page: Page, right: Callable[[NDArray[np.int16]], bool], what: str) -> None:
    """Wait until the viewport is drawn right: texts come before the picture, and slices on the way before the last."""
    for _ in range(PATIENCE_MS // 250):
        if right(picture(page)):
            return
        page.wait_for_timeout(250)
    page.screenshot(path=SHOTS / "wrong.png")
    raise AssertionError(f"{what} was not drawn right: {SHOTS / 'wrong.png'}")


def scroll(page: Page, notches: int, right: Callable[[NDArray[np.int16]], bool], what: str) -> None:
    page.locator(".cornerstone-canvas").first.hover()
    for _ in range(notches):
        page.mouse.wheel(0, 100)
        page.wait_for_timeout(150)
    drawn(page, right, what)


def is_thorax(image: NDArray[np.int16]) -> bool:
    """Grey tissue, darker lungs, a brighter spine."""
    tissue, lung, spine = level(image, 0, -0.2), level(image, -0.38, 0), level(image, 0, 0.42)
    return lung[0] < tissue[0] < spine[0] and len(set(tissue)) == 1


def is_middle_slice(image: NDArray[np.int16]) -> bool:
    """The ball is in the right lung, and the left one is dark."""
    return is_thorax(image) and abs(level(image, 0.38, -0.1)[0] - level(image, 0, -0.2)[0]) < 25


def is_colour(image: NDArray[np.int16]) -> bool:
    """Three discs of pure red, green and blue."""
    discs = [level(image, at, 0.7) for at in (-0.6, 0, 0.6)]
    pure = all(max(disc) > 230 and sorted(disc)[1] < 40 for disc in discs)
    return pure and [disc.index(max(disc)) for disc in discs] == [0, 1, 2]


@pytest.mark.peers
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_ohif_lists_draws_and_scrolls_without_an_error_or_another_host(full: Gateway, tmp_path: Path) -> None:
    program = browser_program()
    from playwright.sync_api import sync_playwright

    SHOTS.mkdir(parents=True, exist_ok=True)
    with serving(full) as base, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=BROWSER_OPTIONS, timeout=PATIENCE_MS)
        page = browser.new_page(viewport={"width": 1100, "height": 720})
        page.set_default_timeout(PATIENCE_MS)
        seen = Seen(base)
        seen.watch(page)
        page.goto(f"{base}/viewer")
        page.fill("#token", mint_token(full, "clinician", "reader"))
        page.get_by_text("Sign in", exact=True).click()
        page.get_by_text("Phantom thorax").first.wait_for(timeout=PATIENCE_MS)
        listed = page.inner_text("body")
        assert all(f"Phantom {name}" in listed for name in ("thorax", "htj2k", "colour", "clock"))
        assert page.evaluate("self.crossOriginIsolated")
        page.screenshot(path=SHOTS / "list.png")

        open_study(page, base, "thorax", is_thorax)
        assert not is_middle_slice(picture(page))
        scroll(page, 4, is_middle_slice, "the middle slice")
        page.screenshot(path=SHOTS / "series.png")

        seen.frames.clear()
        open_study(page, base, "htj2k", lambda image: level(image, 0, 0.42)[0] > level(image, 0, -0.2)[0] > 60)
        assert seen.frames and all(HTJ2K_RPCL in media or "multipart" in media for media in seen.frames)
        page.screenshot(path=SHOTS / "htj2k.png")

        open_study(page, base, "colour", is_colour)
        page.screenshot(path=SHOTS / "colour.png")

        open_study(page, base, "clock", lambda image: level(image, 0.4, 0)[0] > 230)
        scroll(page, 2, lambda image: 0 < level(image, 0.4, 0)[0] < 120, "the clock's third frame")
        page.screenshot(path=SHOTS / "multiframe.png")
        browser.close()
    assert seen.trouble == []
