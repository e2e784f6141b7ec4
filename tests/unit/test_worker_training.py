"""`palimpsest codec train`: what is read, what is held out, and a whole small run."""

from __future__ import annotations

import csv
from collections import Counter
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
from typer.testing import CliRunner

from codec.adapter import materialise
from codec.gpu import NoDevice
from codec.train import machine
from codec.weights import parse
from gateway.errors import InvalidInstance
from palimpsest.cli import app
from worker.training import Found, held_sources, read_shots
from worker.training_run import Recipe, train


def picture(seed: int, rows: int = 40, columns: int = 36) -> np.ndarray:
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:rows, :columns]
    return np.rint(120 + 60 * np.sin(x / 7 + seed) * np.cos(y / 5) + rng.normal(0, 3, (rows, columns))).astype(np.uint8)


def volume(seed: int, slices: int = 4) -> bytes:
    """A NIfTI-1 file of int16."""
    head = np.zeros(352, np.uint8)
    head[0:4] = np.frombuffer(np.int32(348).tobytes(), np.uint8)
    head[40:56] = np.frombuffer(np.array([3, 36, 40, slices, 1, 1, 1, 1], "<i2").tobytes(), np.uint8)
    head[70:74] = np.frombuffer(np.array([4, 16], "<i2").tobytes(), np.uint8)
    head[108:112] = np.frombuffer(np.float32(352).tobytes(), np.uint8)
    head[344:348] = np.frombuffer(b"n+1\0", np.uint8)
    samples = np.stack([picture(seed + place).astype("<i2") * 3 for place in range(slices)])
    return head.tobytes() + samples.tobytes()


def folder(root: Path, manifest: bool = True) -> Path:
    """Three sources: two to train on, one only to be measured."""
    rows = []
    for source, use in (("one", "train"), ("two", "train"), ("three", "measure")):
        (root / source).mkdir(parents=True)
        for number in range(3):
            path = root / source / f"{number}.png"
            path.write_bytes(imagecodecs.png_encode(picture(number)))
            rows.append((path, use, source))
        path = root / source / "v.nii"
        path.write_bytes(volume(number))
        rows.append((path, use, source))
    if manifest:
        with (root / "MANIFEST.csv").open("w", newline="") as file:
            out = csv.writer(file)
            out.writerow(["path", "use", "modality", "source_repo", "licence"])
            for path, use, source in rows:
                out.writerow([path.relative_to(root).as_posix(), use, "MR", source, "CC0"])
    return root


def test_only_what_may_be_trained_on_is_read(tmp_path: Path) -> None:
    found = Found()
    shots = list(read_shots(folder(tmp_path), found))
    assert {shot.source for shot in shots} == {"one", "two"}
    assert found.frames == {("one", "CC0", "MR"): 7, ("two", "CC0", "MR"): 7}
    assert [shot.previous is not None for shot in shots if "v.nii" in shot.name][:4] == [False, True, True, True]
    assert all(shot.kind.startswith("MR|") for shot in shots)


def test_without_a_manifest_a_folder_is_a_source(tmp_path: Path) -> None:
    shots = list(read_shots(folder(tmp_path, manifest=False), Found()))
    assert {shot.source for shot in shots} == {"one", "two", "three"}


def test_held_sources_are_whole_few_and_always_the_same() -> None:
    frames = Counter({f"s{number}": 10 + number for number in range(20)})
    held = held_sources(frames)
    assert held and held == held_sources(Counter(dict(reversed(frames.items()))))
    assert 0.05 <= sum(frames[source] for source in held) / sum(frames.values()) <= 0.2
    assert held_sources(Counter({"only": 5})) == frozenset()


def test_a_run_writes_weights_and_their_card_and_resumes(tmp_path: Path) -> None:
    data, out = folder(tmp_path / "data"), tmp_path / "out"
    recipe = Recipe(("fast",), steps=4, groups=4, samples=16)
    (path,) = train(data, out, recipe, lambda line: None)
    weights = parse(path.read_bytes())
    assert weights.networks == ("frame", "volume") and weights.profiles == ("fast",)
    assert path.name == f"fast-{weights.sha256[:8]}.bin"
    assert materialise(weights, b"", True).inputs > materialise(weights, b"", False).inputs
    card = (out / "model-card.md").read_text("utf-8")
    assert weights.sha256 in card and "| one | CC0 | MR | 7 |" in card and "three" not in card
    lines: list[str] = []
    again = train(data, out, recipe, lines.append)
    assert lines[0] == "training on cpu"
    assert lines[1].startswith("samples of an earlier run") and "resumed at step 4" in lines[2]
    assert parse(again[0].read_bytes()).arrays.keys() == weights.arrays.keys()
    assert all((parse(again[0].read_bytes()).array(key) == weights.array(key)).all() for key in weights.arrays)


def test_a_folder_of_nothing_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_text("nothing")
    with pytest.raises(InvalidInstance, match="nothing in this folder"):
        train(tmp_path, tmp_path / "out", Recipe(), lambda line: None)


def test_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "find_spec", lambda name: None)
    data, out = folder(tmp_path / "data"), tmp_path / "out"
    arguments = ["codec", "train", "--data", str(data), "--out", str(out), "--profile", "fast", "--steps", "2"]
    result = CliRunner().invoke(app, [*arguments, "--device", "auto"])
    assert result.exit_code == 0, result.output
    assert len(list(out.glob("fast-*.bin"))) == 1
    assert " s on cpu. Kept" in (out / "model-card.md").read_text("utf-8")


def test_a_device_that_is_not_there_is_named_before_anything_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "find_spec", lambda name: None)
    arguments = ["codec", "train", "--data", str(tmp_path), "--out", str(tmp_path / "out"), "--device", "cuda"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 2 and "no torch here" in result.output and "--device cpu" in result.output
    assert not (tmp_path / "out").exists()
    with pytest.raises(NoDevice, match="one of auto, cpu, cuda"):
        machine.open_machine("tpu")
