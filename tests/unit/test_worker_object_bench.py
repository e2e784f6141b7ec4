"""The bench: figures that add up, what counts as context, skipped files with a reason, JSON that says the same."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
from typer.testing import CliRunner

from codec import weights as weightfiles
from codec.frame import encode_frame
from palimpsest.cli import app
from tests.object_makers import image, noisy, packaged
from tests.unit.codec_networks import known, weight_file
from tests.unit.test_codec_vae import random_weights
from tests.unit.test_worker_grouping import slice_file
from tests.unit.test_worker_imagefiles import nifti
from worker import bench as bench_module
from worker.bench import Context, bench
from worker.bench_ablation import IN_FRAMES, WHOLE, ablate, format_ablation
from worker.bench_figures import STANDARDS, FrameRow, figures, summary
from worker.bench_inputs import Choice, groups, list_inputs, trained_sources
from worker.bench_plan import Plan
from worker.bench_table import format_table

SUMMARY = (
    "n", "geomean_vs_jpegxl9", "worst_vs_jpegxl9", "geomean_vs_jpegls", "geomean_vs_htj2k", "encode_mp_s", "fit_s",
    "decode_mp_s", "exact",
)  # fmt: skip


@pytest.fixture(autouse=True, scope="module")
def weights() -> Iterator[None]:
    """Random ones, also of the VAE: figures need not be good, only right."""
    vae = weightfiles.add(weightfiles.write_weights("vae", (), weightfiles.parse(random_weights(5)).arrays))
    with known(weight_file()):
        yield
    weightfiles.drop(vae)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A multi-frame object, an object without pixels, a text, a volume and a picture."""
    inputs = tmp_path / "in"
    inputs.mkdir()
    (inputs / "a.dcm").write_bytes(image([noisy(32, 32), noisy(32, 32, seed=2)], stored=12))
    (inputs / "b.dcm").write_bytes(packaged("rtplan.dcm"))
    (inputs / "c.txt").write_bytes(b"no dicom")
    (inputs / "d.nii").write_bytes(nifti(np.stack([noisy(24, 40, seed=k) for k in range(3)]).astype("u2"), 512))
    (inputs / "e.png").write_bytes(imagecodecs.png_encode(noisy(20, 30).astype(np.uint8)))
    return inputs


def test_report(folder: Path) -> None:
    seen: list[FrameRow] = []
    report = bench([folder], Plan(), seen.append)
    assert report.frames == seen
    assert [(Path(row.path).name, row.frame) for row in seen] == [
        ("a.dcm", 0), ("a.dcm", 1), ("d.nii", 0), ("d.nii", 1), ("d.nii", 2), ("e.png", 0),
    ]  # fmt: skip
    assert {Path(path).name: reason for path, reason in report.skipped.items()} == {
        "b.dcm": "no-pixels", "c.txt": "not-part10",
    }  # fmt: skip
    for row in report.frames:
        assert row.exact
        assert all(row.bytes[name] > 0 for name in ("ours", *STANDARDS))
        assert all(row.encode_s[name] > 0 for name in ("ours", *STANDARDS))
        assert all(row.decode_s[name] > 0 for name in ("ours", *STANDARDS))
        assert row.bytes["ours"] == min(row.lengths.values())
    assert set(SUMMARY) <= set(report.summary)
    assert report.summary["n"] == 6
    assert report.summary["exact"] is True
    assert report.summary["worst_vs_jpegxl9"] == pytest.approx(max(r.ratio("jxl9") for r in seen), abs=1e-5)
    (one,) = report.objects
    assert one.bytes["archived"] > sum(row.bytes["ours"] for row in seen[:2])
    assert one.bytes["jxl9"] > sum(row.bytes["jxl9"] for row in seen[:2])
    again = json.loads(report.as_json())
    assert again["frames"][0]["bytes"] == seen[0].bytes
    assert again["summary"] == json.loads(json.dumps(report.summary))
    table = format_table(report)
    assert "a.dcm#1" in table
    assert "6 frames, all exact, 2 files skipped" in table


def test_nothing_to_measure(tmp_path: Path) -> None:
    report = bench([tmp_path], Plan())
    assert (report.frames, report.objects, report.summary["n"], report.summary["exact"]) == ([], [], 0, False)
    assert format_table(report).startswith("0 frames")


def test_max_frames_are_neighbours_from_the_middle() -> None:
    assert Choice(max_frames=4).frames(11) == [3, 4, 5, 6]
    assert Choice(max_frames=4).frames(3) == [0, 1, 2]
    assert Choice().frames(3) == [0, 1, 2]


def test_an_object_of_which_not_all_was_measured_has_no_line_of_its_own(folder: Path) -> None:
    report = bench([folder / "a.dcm"], Plan(choice=Choice(max_frames=1)))
    assert (len(report.frames), report.objects) == (1, [])


def row(path: str, ours: float, jxl9: float, *, exact: bool = True, **other: float) -> FrameRow:
    sizes = {"ours": ours, "jxl9": jxl9, "jxl7": jxl9, "jpegls": 2 * jxl9, "htj2k": 2 * jxl9, **other}
    seconds = {"ours": 0.5, "jxl9": 1.0, "jxl7": 1.0, "jpegls": 1.0, "htj2k": 1.0}
    return FrameRow(path, 0, "MR", "s", 1000, 1000, 1, 12, sizes, seconds, dict(seconds), exact=exact)


def test_figures_by_hand() -> None:
    rows = [row("a", 90_000, 100_000), row("b", 100_000, 100_000), row("c", 100_600, 100_000, exact=False)]
    rows[0].fit_s = 1.5
    found = summary(rows, [])
    assert found["geomean_vs_jpegxl9"] == pytest.approx((0.9 * 1.0 * 1.006) ** (1 / 3), abs=1e-5)
    assert found["geomean_vs_jpegls"] == pytest.approx(found["geomean_vs_jpegxl9"] / 2, abs=1e-5)
    assert found["encode_mp_s"] == pytest.approx(3 / (1.5 + 1.5))
    assert found["decode_mp_s"] == pytest.approx(3 / 1.5)
    assert (found["fit_s"], found["exact"], found["mismatches"]) == (1.5, False, 1)
    assert [each["path"] for each in found["worse_than_allowed"]] == ["c"]
    assert found["worse_than_allowed"][0]["excess_bytes"] == pytest.approx(100)  # beyond 0.5 %
    assert [each["path"] for each in found["worst"]] == ["c", "b", "a"]
    assert found["by_modality"]["MR"]["n"] == found["by_source"]["s"]["n"] == 3
    assert figures([]) == {"n": 0}


def test_small_frames_may_be_48_bytes_over() -> None:
    assert row("a", 148, 100).excess == 0
    assert row("a", 149, 100).excess > 0


def test_a_frame_before_counts_only_if_it_is_of_the_same_kind_and_not_too_long_ago() -> None:
    from codec.frame import EncodedFrame
    from codec.pixelformat import PixelFormat

    context, fmt = Context(), PixelFormat(4, 4, 1, 8, 8, 7, False)
    words = np.zeros((4, 4), np.uint8)
    used = []
    for _ in range(40):
        before = context.before(fmt)
        used.append(before[0] is not None)
        context.coded(EncodedFrame(b"", "raw", {}), words, fmt)
    assert [place for place, each in enumerate(used) if not each] == [0, 16, 32]
    assert context.before(PixelFormat(4, 4, 1, 8, 7, 6, False)) == (None, None)


def manifest(folder: Path) -> Path:
    path = folder / "MANIFEST.csv"
    lines = [("a.dcm", "measure", "one", "MR"), ("d.nii", "train", "one", "CT"), ("e.png", "benchmark", "two", "CR")]
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([("path", "use", "source_repo", "modality"), *lines])
    return path


def test_manifest(folder: Path) -> None:
    path, skipped = manifest(folder), dict[str, str]()
    found = list_inputs([folder], Choice(manifest=path, use=("measure", "benchmark")), skipped)
    assert [(each.path.name, each.source, each.modality) for each in found] == [
        ("a.dcm", "one", "MR"), ("e.png", "two", "CR"),
    ]  # fmt: skip
    assert skipped == {}
    assert trained_sources(path) == {"one"}
    assert len(list_inputs([folder], Choice(manifest=path), skipped)) == 3
    report = bench([folder], Plan(objects=False, choice=Choice(manifest=path, use=("measure", "benchmark"))))
    assert report.summary["by_source"]["one"]["n"] == 2
    assert report.summary["sources_held_out"]["n"] == 1


def test_files_of_a_series_stand_side_by_side(folder: Path) -> None:
    inputs = list_inputs([folder / "a.dcm", folder / "d.nii", folder / "a.dcm", folder / "e.png"], Choice(), {})
    parts = [[each.path.name for each in part] for part in groups(inputs, by_series=True)]
    assert parts == [["a.dcm", "a.dcm"], ["d.nii", "e.png"]]
    assert [len(part) for part in groups(inputs, by_series=False)] == [1, 1, 1, 1]


@pytest.fixture
def adaptable(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Weights with a basis of adapters (random: any fit is an improvement), and no coder but the learned one."""
    arrays = weightfiles.parse(weight_file()).arrays
    shifts = sum(arrays[f"frame.{part}"].shape[0] for part in ("g1", "b1", "g2", "b2", "b3"))
    basis = np.random.default_rng(1).integers(-64, 65, (6, shifts)).astype(np.int8)
    profiles = ("fast", "default", "max")
    data = weightfiles.write_weights("a", profiles, {**arrays, "frame.basis": basis, "volume.basis": basis})
    monkeypatch.setattr(bench_module, "encode_frame", partial(encode_frame, coders=("learned",)))
    with known(data):
        yield


def test_adapters_for_each_image(folder: Path, adaptable: None) -> None:
    without = frozenset({"previous"})  # random networks: which one is chosen says nothing
    plan = Plan(adapt="image", fit_seconds=60, objects=False, without=without)
    report = bench([folder / "a.dcm", folder / "e.png"], plan)
    assert [row.adapter for row in report.frames] == ["shared", "shared", "inline"]
    assert report.summary["exact"]
    assert all(row.fit_s > 0 for row in report.frames)
    assert report.summary["fit_s"] == pytest.approx(sum(row.fit_s for row in report.frames), abs=1e-3)


def test_an_adapter_for_a_series_is_paid_by_its_frames(folder: Path, adaptable: None) -> None:
    plan = Plan(adapt="series", fit_seconds=60, objects=False, without=frozenset({"previous"}))
    report = bench([folder / "d.nii"], plan)
    assert {row.adapter for row in report.frames} == {"shared"}
    assert report.summary["exact"]
    paid = {round(row.bytes["ours"] - row.lengths["learned"], 3) for row in report.frames}
    assert len(paid) == 1
    assert 3 * paid.pop() == pytest.approx(7, abs=0.01)  # kind and six numbers, once
    with_previous = bench([folder / "d.nii"], replace(plan, without=frozenset()))
    assert with_previous.summary["exact"]


def test_slices_of_a_series_are_archived_as_one_object(tmp_path: Path) -> None:
    for number, name in enumerate("cab", 1):
        (tmp_path / f"{name}.dcm").write_bytes(slice_file(number))
    inputs = list_inputs([tmp_path], Choice(), {})
    assert [each.path.name for each in inputs] == ["c.dcm", "a.dcm", "b.dcm"]  # as they lie in space
    alone = bench([tmp_path], Plan())
    together = bench([tmp_path], Plan(adapt="series"))
    assert [row.bytes["received"] for row in together.objects] == [row.bytes["received"] for row in alone.objects]
    sizes = [sum(row.bytes["archived"] for row in report.objects) for report in (alone, together)]
    assert sizes[1] < sizes[0] - 1000  # one header and one envelope instead of three
    assert together.summary["exact"]


def test_ablation(folder: Path) -> None:
    found = ablate([folder], Plan(choice=Choice(max_frames=2)))
    assert set(found["parts"]) == {WHOLE, *IN_FRAMES}
    for part in found["parts"].values():
        assert (part["n"], part["exact"]) == (5, True)
    assert found["parts"][WHOLE]["geomean_vs_whole"] == 1
    assert len(found["skipped"]) == 2
    assert {kind: each["groups"] for kind, each in found["vae"].items()} == {
        "single 1": 1, "single 3": 1, "volumes 1": 2, "volumes 3": 2,
    }  # fmt: skip
    assert all(each["exact"] and each["stacked"] <= each["causal"] for each in found["vae"].values())
    assert "least-squares" in format_ablation(found)


def test_command(folder: Path) -> None:
    out = folder / "out.json"
    done = CliRunner().invoke(app, ["codec", "bench", str(folder / "e.png"), "--json", str(out), "--profile", "fast"])
    assert done.exit_code == 0, done.output
    assert json.loads(out.read_text())["summary"]["profile"] == "fast"
    done = CliRunner().invoke(app, ["codec", "bench", str(folder / "e.png"), "--json", "-"])
    assert json.loads(done.stdout)["summary"]["n"] == 1
    done = CliRunner().invoke(app, ["codec", "bench", str(folder / "e.png"), "--ablate", "--json", "-"])
    assert json.loads(done.stdout)["parts"][WHOLE]["n"] == 1
    (folder / "own.bin").write_bytes(weight_file(2))
    own = ["codec", "bench", str(folder / "e.png"), "--weights"]
    assert CliRunner().invoke(app, [*own, str(folder / "own.bin")]).exit_code == 0
    weightfiles.drop(weightfiles.parse(weight_file(2)))
    assert CliRunner().invoke(app, [*own, str(folder / "e.png")]).exit_code == 2
    done = CliRunner().invoke(app, ["codec", "bench", str(folder / "e.png"), "--without", "nonsense"])
    assert done.exit_code == 2
    assert CliRunner().invoke(app, ["codec", "bench", str(folder / "c.txt")]).exit_code == 1
