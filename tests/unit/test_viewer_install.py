"""`palimpsest viewer install`: only the pinned bytes, only what belongs there, all of it or nothing."""

from __future__ import annotations

import base64
import gzip
import hashlib
import io
import tarfile
from pathlib import Path

import pytest

from gateway import viewer
from gateway.errors import IntegrityError, NotFound, PolicyRefused
from palimpsest import viewer_install

SCRIPT = "app.bundle.0123456789abcdef.js"
FILES = {
    SCRIPT: b'a;\n__webpack_require__.p = "/";\nb',
    "app.bundle.css": b"@font-face{src:url(/a.woff2)}p{background:url(data:x)}",
    "assets/favicon.ico": b"ico",
    "assets/images/CT-Bone.png": b"png",
    "sw.js": b"service worker",
    "ort/ort.min.js": b"networks",
    "1.bundle.0123456789abcdef.js.map": b"map",
    "index.html": b"<script>",
    "../../outside.js": b"traversal",
}


def packed(folder: Path, monkeypatch: pytest.MonkeyPatch, files: dict[str, bytes]) -> Path:
    """A distribution of these files, pinned."""
    path = folder / "app.tgz"
    with tarfile.open(path, "w:gz") as tar:
        for name, data in files.items():
            member = tarfile.TarInfo(f"package/dist/{name}")
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
        link = tarfile.TarInfo("package/dist/link.js")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    pinned = "sha512-" + base64.b64encode(hashlib.sha512(path.read_bytes()).digest()).decode()
    for module in (viewer, viewer_install):
        monkeypatch.setattr(module, "INTEGRITY", pinned)
    return path


def test_what_belongs_there_is_unpacked_under_our_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "home" / "viewer"
    archive = packed(tmp_path, monkeypatch, FILES)
    for _ in range(2):  # in place of what was there
        assert viewer_install.install(archive, folder) == 4
    found = viewer.installed(folder)
    assert found is not None
    assert sorted(found.files) == [SCRIPT, "app.bundle.css", "assets/favicon.ico", "assets/images/CT-Bone.png"]
    script = found.files[SCRIPT]
    assert b'__webpack_require__.p = "/viewer/";' in script.path.read_bytes()
    assert hashlib.sha256(script.path.read_bytes()).hexdigest() == script.sha256
    assert gzip.decompress(script.path.with_name(SCRIPT + ".gz").read_bytes()) == script.path.read_bytes()
    assert (folder / "app.bundle.css").read_bytes() == b"@font-face{src:url(/viewer/a.woff2)}p{background:url(data:x)}"
    assert sorted(path.name for path in folder.parent.iterdir()) == ["viewer"]
    assert not (tmp_path / "outside.js").exists() and not (folder / "link.js").exists()


def test_other_bytes_are_refused_and_what_is_there_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "viewer"
    archive = packed(tmp_path, monkeypatch, FILES)
    viewer_install.install(archive, folder)
    archive.write_bytes(archive.read_bytes() + b"\0")
    with pytest.raises(IntegrityError, match="viewer-digest|pinned"):
        viewer_install.install(archive, folder)
    with pytest.raises(NotFound):
        viewer_install.install(tmp_path / "none.tgz", folder)
    assert viewer.installed(folder) is not None


@pytest.mark.parametrize("missing", [SCRIPT, "app.bundle.css"])
def test_another_layout_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, missing: str) -> None:
    files = {name: data for name, data in FILES.items() if name != missing}
    with pytest.raises(PolicyRefused):
        viewer_install.install(packed(tmp_path, monkeypatch, files), tmp_path / "viewer")
    assert not (tmp_path / "viewer").exists()


def test_without_npm_it_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(NotFound, match="--from"):
        viewer_install.fetch(tmp_path)
