"""`palimpsest viewer install`: OHIF's packed distribution, fetched by npm or given as a file, checked, unpacked.

Only what the viewer needs under our roof is kept: no source maps, no service worker, no sign-in of other vendors, no
neural networks (they would fetch their weights from another host).
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import re
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path

from gateway.errors import IntegrityError, NotFound, PolicyRefused, Unavailable
from gateway.viewer import INTEGRITY, LISTING, PACKAGE, ROOT, VERSION, installed

__all__ = ["fetch", "install"]

#: Below `package/dist/`. What is not named is not installed.
KEPT = re.compile(
    r"[A-Za-z0-9_-]+(\.bundle)?(\.[0-9a-f]{16})?\.(js|css|wasm)|app\.bundle\.css"
    r"|assets/[A-Za-z0-9_.-]+\.(png|ico)|assets/images/[A-Za-z0-9_.-]+"
    r"|dicom-microscopy-viewer/[A-Za-z0-9_.-]+\.(js|wasm)|[A-Za-z0-9_-]+(\.[0-9a-f]{16})?\.(svg|png|ttf|woff2?)"
)
DROPPED = ("google.js", "sw.js", "init-service-worker.js", "app-config.js", "oidc-client.min.js", "es6-shim.min.js")
SCRIPT = re.compile(r"app\.bundle\.[0-9a-f]{16}\.js")
STYLE = "app.bundle.css"
#: How the distribution names the path that it is served under (webpack's public path), and what stands there instead.
OWN_PATH, OUR_PATH = b'__webpack_require__.p = "/";', f'__webpack_require__.p = "{ROOT}";'.encode()
OWN_URL, OUR_URL = re.compile(rb"url\((['\"]?)/(?=[A-Za-z0-9])"), rb"url(\1" + ROOT.encode()
PACKED = (".js", ".css", ".wasm", ".svg")
MAX_FILE_BYTES = 64 << 20
MAX_FILES = 1000
FETCH_SECONDS = 300


def fetch(folder: Path) -> Path:
    """The distribution from the registry that npm is set to, into `folder`. Raises NotFound, Unavailable."""
    npm = shutil.which("npm")
    if npm is None:
        raise NotFound("no-npm", f"npm is not installed: fetch {PACKAGE}@{VERSION} elsewhere (npm pack), give --from")
    command = [npm, "pack", f"{PACKAGE}@{VERSION}", "--ignore-scripts", "--pack-destination", str(folder)]
    try:
        subprocess.run(command, check=True, cwd=folder, capture_output=True, timeout=FETCH_SECONDS)
    except (subprocess.SubprocessError, OSError) as error:
        said = getattr(error, "stderr", b"") or b""
        reason = next((line for line in said.decode(errors="replace").splitlines() if " error " in line), "")
        raise Unavailable("viewer-fetch", f"npm did not give {PACKAGE}@{VERSION}: {reason or error}") from None
    found = list(folder.glob("*.tgz"))
    if len(found) != 1:
        raise Unavailable("viewer-fetch", f"npm gave {len(found)} files for {PACKAGE}@{VERSION}")
    return found[0]


def install(archive: Path, folder: Path) -> int:
    """Check the distribution, unpack it into `folder` in place of what is there; the number of files.

    Raises IntegrityError ``viewer-digest`` for other bytes than the pinned ones, PolicyRefused ``viewer-layout``
    where they are not laid out as they should be, NotFound where there is no such file.
    """
    try:
        digest = base64.b64encode(hashlib.sha512(archive.read_bytes()).digest()).decode()
    except OSError as error:
        raise NotFound("no-viewer-file", f"{archive} cannot be read ({type(error).__name__})") from None
    if f"sha512-{digest}" != INTEGRITY:
        raise IntegrityError("viewer-digest", f"{archive.name} is not {PACKAGE}@{VERSION} as it was pinned")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".viewer-") as made:
        new = Path(made) / "new"
        files = {name: _put(new, name, data) for name, data in _kept(archive)}
        scripts = [name for name in files if SCRIPT.fullmatch(name)]
        if len(scripts) != 1 or STYLE not in files:
            raise PolicyRefused("viewer-layout", f"{PACKAGE}@{VERSION} does not hold one {SCRIPT.pattern} and {STYLE}")
        listing = {
            "version": VERSION, "integrity": INTEGRITY, "script": scripts[0], "style": STYLE, "files": files,
        }  # fmt: skip
        (new / LISTING).write_text(json.dumps(listing), "utf-8")
        if folder.exists():
            folder.rename(Path(made) / "old")
        new.rename(folder)
    if installed(folder) is None:
        raise PolicyRefused("viewer-layout", f"what was unpacked to {folder} is not complete")
    return len(files)


def _kept(archive: Path) -> Iterator[tuple[str, bytes]]:
    with tarfile.open(archive, "r:gz") as tar:
        count = 0
        for member in tar:
            name = member.name.removeprefix("package/dist/")
            if name == member.name or not member.isfile() or name in DROPPED or not KEPT.fullmatch(name):
                continue
            count += 1
            opened = tar.extractfile(member)
            if opened is None or member.size > MAX_FILE_BYTES or count > MAX_FILES:
                raise PolicyRefused("viewer-layout", f"{name} is too large, or one file too many")
            yield name, opened.read()


def _put(folder: Path, name: str, data: bytes) -> tuple[str, bool]:
    if name.endswith(".js"):
        data = data.replace(OWN_PATH, OUR_PATH)
    elif name.endswith(".css"):
        data = OWN_URL.sub(OUR_URL, data)
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    packed = name.endswith(PACKED)
    if packed:
        path.with_name(path.name + ".gz").write_bytes(gzip.compress(data, 6, mtime=0))
    return hashlib.sha256(data).hexdigest(), packed
