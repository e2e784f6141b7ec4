"""Decoder escrow: archived objects and a recovery key, a fresh interpreter with NumPy and the folder alone."""

from __future__ import annotations

import ast
import base64
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pytest

from codec.frame import EncodedFrame, encode_frame
from gateway.archive import FilesystemArchive, archive_key
from gateway.errors import PolicyRefused
from gateway.keys import Recipient
from gateway.policy import ArchiveRule
from stego.recipients import generate
from tests.object_makers import FACTS, JPEG_LS, compressed, header, image, noisy, save
from tests.unit.codec_networks import known, weight_file
from tests.unit.test_worker_object_golden import GoldenRing, slices
from worker import framechain
from worker.candidate import build_candidate
from worker.escrow import SUMS, modules, write_escrow
from worker.groupobject import GroupFile, build_group
from worker.weightobject import needed_weights, require_archived

ROOT = Path(__file__).resolve().parents[2]
#: starts a script of the folder with what NumPy needs on the path, and nothing else
LAUNCH = """
import sys, runpy
sys.path.append({numpy!r})
sys.argv = {argv!r}
try:
    runpy.run_path({script!r}, run_name='__main__')
finally:
    ours = {{'numpy', 'numba', 'codec', 'stego', 'worker', '__main__', '__mp_main__'}}
    loaded = {{name.split('.')[0] for name in sys.modules}}
    print('foreign', sorted(loaded - set(sys.stdlib_module_names) - ours), file=sys.stderr)
"""
COMPARE = "import sys, runpy; sys.path.append({numpy!r}); sys.exit(runpy.run_path({script!r})['compare']())"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("escrow") / "escrow"
    write_escrow(out)
    return out


@pytest.fixture(scope="module")
def only_numpy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that holds NumPy and its libraries, not its neighbours in site-packages."""
    out, source = tmp_path_factory.mktemp("numpy"), Path(np.__file__).parent
    for name in ("numpy", "numpy.libs"):
        if (source.parent / name).exists():
            (out / name).symlink_to(source.parent / name)
    return out


def run(folder: Path, numpy: Path, script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    code = LAUNCH.format(numpy=str(numpy), argv=[script, *arguments], script=str(folder / script))
    return subprocess.run(
        [sys.executable, "-I", "-S", "-c", code], cwd=folder, env={}, capture_output=True, text=True, timeout=900
    )


class RecoveryRing(GoldenRing):
    """A ring with one recipient: an offline recovery key."""

    def __init__(self, public: bytes, kind: str = "xwing") -> None:
        super().__init__()
        object.__setattr__(self, "known", (Recipient("offline", kind, public, recovery=True),))

    def recipients(self) -> tuple[Recipient, ...]:
        return self.known  # type: ignore[attr-defined, no-any-return]


def received() -> dict[str, bytes]:
    """Files of every kind."""
    rng = np.random.default_rng(3)
    colour, grey = rng.integers(0, 200, (12, 10, 3)).astype(np.uint8), noisy(24, 24)
    return {
        "grey": image([noisy(64, 64, seed=8)], stored=16, PixelRepresentation=0),
        "frames": image([noisy(20, 20, seed=at) for at in range(3)], stored=16),
        "colour": image([colour], planar=1, vr="OB"),
        "compressed": compressed([grey], [bytes(imagecodecs.jpegls_encode(grey))], syntax=JPEG_LS, stored=16),
        "report": save(header()),
    }


def only_plain(monkeypatch: pytest.MonkeyPatch, *coders: str) -> None:
    """Code with coders that have a plain decoder: JPEG XL and HTJ2K win some small frames."""

    def encode(*arguments: Any, **choices: Any) -> EncodedFrame:
        return encode_frame(*arguments, **{**choices, "coders": coders})

    monkeypatch.setattr(framechain, "encode_frame", encode)


@pytest.mark.timeout(1000)
def test_archived_objects_open_with_a_recovery_key_and_nothing_else(
    folder: Path, only_numpy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    only_plain(monkeypatch, "learned", "jpegls", "raw")
    private, public = generate("xwing")
    ring = RecoveryRing(public)
    rule = ArchiveRule(name="offline", shreddable=False, recipients=("offline",))
    archive, wanted = tmp_path / "archive", {}
    archive.mkdir()
    for name, data in received().items():
        made = build_candidate(data, FACTS, ring, rule=rule)  # type: ignore[arg-type]
        assert made.form == ("PASSTHROUGH" if name == "report" else "CODED"), made.reason
        (archive / f"{name}.dcm").write_bytes(made.envelope)
        wanted[name] = sha256(data).hexdigest()
    key = tmp_path / "recovery.key"
    key.write_bytes(base64.b64encode(private) + b"\n")
    done = run(folder, only_numpy, "open.py", "--out", str(tmp_path / "out"), "--key", str(key), str(archive))
    assert done.returncode == 0, done.stderr
    assert "foreign []" in done.stderr
    restored = {sha256(path.read_bytes()).hexdigest() for path in (tmp_path / "out").iterdir()}
    assert {digest for name, digest in wanted.items() if name != "compressed"} < restored
    assert len(restored) == len(wanted)
    assert done.stdout.count("as received") == 4
    assert "compressed.dcm" in done.stdout and "native pixels" in done.stdout

    other = tmp_path / "other.key"
    other.write_bytes(base64.b64encode(generate("xwing")[0]))
    done = run(folder, only_numpy, "open.py", "--out", str(tmp_path / "none"), "--key", str(other), str(archive))
    assert done.returncode == 1
    assert done.stderr.count("none of these keys opens this object") == len(wanted)


@pytest.mark.timeout(1000)
def test_the_learned_coder_opens_with_the_weights_that_the_archive_holds(
    folder: Path, only_numpy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    only_plain(monkeypatch, "learned")
    private, public = generate("x25519")
    ring = RecoveryRing(public, "x25519")
    rule = ArchiveRule(name="offline", shreddable=False, recipients=("offline",))
    archive, wanted = FilesystemArchive(tmp_path / "archive"), set()
    with known(weight_file(31)) as weights:  # not among the released ones, nor in the folder
        files = [image([noisy(20, 20, seed=at) for at in range(3)], stored=16), image([noisy(48, 48)], stored=16)]
        for data in files:
            made = build_candidate(data, FACTS, ring, rule=rule)  # type: ignore[arg-type]
            assert made.coder == "learned"
            assert needed_weights(made.envelope) == (weights,)
            require_archived(archive, made.envelope)
            archive.put(archive_key(made.envelope_uid), made.envelope, sha256(made.envelope).hexdigest())
            wanted.add(sha256(data).hexdigest())
    key = tmp_path / "recovery.key"
    key.write_bytes(private)
    done = run(folder, only_numpy, "open.py", "--out", str(tmp_path / "out"), "--key", str(key), str(archive.folder))
    assert done.returncode == 0, done.stderr
    assert {sha256(path.read_bytes()).hexdigest() for path in (tmp_path / "out").iterdir()} == wanted


@pytest.mark.timeout(1000)
def test_a_group_with_a_stack_opens_with_the_folder_alone(
    folder: Path, only_numpy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"coders": ("learned",), "split": 6}  # bits of a global part: the encoder seldom chooses any
    monkeypatch.setattr(framechain, "encode_frame", lambda *args, **given: encode_frame(*args, **{**given, **options}))
    private, public = generate("x25519")
    rule = ArchiveRule(name="offline", shreddable=False, recipients=("offline",))
    files = [GroupFile(partial(bytes, data), FACTS) for data in slices()]
    made = build_group(files, RecoveryRing(public, "x25519"), rule=rule)  # type: ignore[arg-type]
    assert [each.carrier for each in made][0] == "initial-bits"
    (tmp_path / "group.dcm").write_bytes(made[0].envelope)
    (tmp_path / "key").write_bytes(private)
    given = ("--key", str(tmp_path / "key"), str(tmp_path / "group.dcm"))
    done = run(folder, only_numpy, "open.py", "--out", str(tmp_path / "out"), *given)
    assert (done.returncode, done.stdout.count("as received")) == (0, 3), done.stderr
    assert "foreign []" in done.stderr
    restored = {sha256(path.read_bytes()).hexdigest() for path in (tmp_path / "out").iterdir()}
    assert restored == {sha256(data).hexdigest() for data in slices()}


@pytest.mark.slow
@pytest.mark.timeout(1000)
def test_every_vector_holds_in_the_folder(folder: Path, only_numpy: Path) -> None:
    done = run(folder, only_numpy, "verify.py")
    assert done.returncode == 0, done.stdout
    assert "foreign []" in done.stderr
    lines = done.stdout.splitlines()
    assert {line.split("/")[-1] for line in lines if line.startswith("needs")} == {"coder-jxl", "coder-htj2k"}
    assert len(lines) > 40


def test_a_changed_file_is_named(folder: Path, only_numpy: Path) -> None:
    # only the comparison: the vectors are another test's
    path = folder / "docs" / "bitstream.md"
    kept = path.read_bytes()
    path.write_bytes(kept + b" ")
    try:
        code = COMPARE.format(numpy=str(only_numpy), script=str(folder / "verify.py"))
        done = subprocess.run([sys.executable, "-I", "-S", "-c", code], capture_output=True, text=True, timeout=240)
    finally:
        path.write_bytes(kept)
    assert (done.returncode, done.stdout.split()) == (1, ["CHANGED", "docs/bitstream.md"])


def test_sums_name_every_file(folder: Path) -> None:
    named = {line.split("  ", 1)[1] for line in (folder / SUMS).read_text("utf-8").splitlines()}
    there = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert there - {SUMS} == named


def module_level(path: Path) -> Sequence[str]:
    """First names of what a module imports at once."""
    tree = ast.parse(path.read_text("utf-8"))
    found = [alias.name for node in tree.body if isinstance(node, ast.Import) for alias in node.names]
    found += [str(node.module) for node in tree.body if isinstance(node, ast.ImportFrom)]
    return [name.split(".")[0] for name in found]


def test_what_is_copied_needs_numpy_only() -> None:
    copied = modules(ROOT)
    foreign = {
        f"{path.relative_to(ROOT)}: {name}"
        for path in copied
        for name in module_level(path)
        if name not in sys.stdlib_module_names and name not in ("numpy", "codec", "stego", "worker")
    }
    assert foreign == {"worker/jpegls_t87.py: numba"}  # for which there is a stand-in
    names = {path.relative_to(ROOT).as_posix() for path in copied}
    assert {"codec/reference.py", "codec/groupread.py", "codec/weights.py", "worker/opener/restore.py"} <= names
    assert not names & {"codec/frame.py", "codec/lanes.py", "stego/seal.py", "worker/restore.py"}


def test_a_folder_that_holds_something_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("x")
    with pytest.raises(PolicyRefused):
        write_escrow(tmp_path)
    assert os.listdir(tmp_path) == ["mine"]


def test_published_keys_are_those_of_the_golden_objects() -> None:
    published = json.loads((ROOT / "tests" / "golden" / "archive-object" / "keys.json").read_text("utf-8"))
    ring = GoldenRing()
    assert {bytes.fromhex(value) for value in published["secrets"].values()} == {ring.kek, ring.patient, ring.pixel}
    assert published["signing"] == {"sign-golden": ring.signing.hex()}
