"""`payload bench` on generated images: exactness, honest refusals, AUC columns by patient, no names in the report."""

from __future__ import annotations

import json
import math
import stat
import sys
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from typer.testing import CliRunner

from gateway.errors import Unsupported
from palimpsest.cli import app
from stego.cover import Cover
from stego.region import non_interest
from tests.object_makers import image
from worker import payload_bench
from worker.detectors import DETECTORS, NoDetectors
from worker.payload_bench import Plan, Report, bench
from worker.payload_detection import Evidence, judge
from worker.payload_figures import psnr, sizes, ssim
from worker.payload_modes import MODES, known, make_job, run
from worker.payload_table import format_table
from worker.payload_tiles import Choice, Tile, places, tiles
from worker.stegexpose import COVER, StegExpose, eight_bits

SIDE = 104


def scan(seed: int, rows: int = SIDE, columns: int = SIDE) -> NDArray[np.uint16]:
    """A body with noise in noisy air, 12 bits."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:rows, :columns]
    body = ((y - rows / 2) / (0.4 * rows)) ** 2 + ((x - columns / 2) / (0.3 * columns)) ** 2 < 1
    values = 200 + 900 * body + 3 * x + rng.normal(0, 12, (rows, columns))
    return np.clip(np.rint(values), 0, 4095).astype(np.uint16)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("images")
    for patient in range(3):
        for number in range(2):
            seed = 10 * patient + number
            data = image([scan(seed)], stored=12, PatientID=f"SECRET-{patient}", Modality="CT" if patient else "MR")
            (root / f"{patient}-{number}.dcm").write_bytes(data)
    (root / "colour.dcm").write_bytes(image([np.zeros((64, 64, 3), np.uint8)]))
    (root / "notes.txt").write_text("no DICOM")
    return root


@pytest.fixture(scope="module")
def report(folder: Path) -> Report:
    plan = Plan(tuple(MODES), (0.05, 0.4), Choice(SIDE, 1, 4), growth_every=3)
    return bench([folder], plan, folder.parent / "report.json")


@pytest.fixture(scope="module")
def tile(folder: Path) -> Tile:
    return next(tiles([folder], Choice(SIDE), {}))


def test_everything_comes_back_or_is_refused_with_a_reason(report: Report) -> None:
    assert len(report.rows) == 6 * len(MODES) * 2
    taken = [row for row in report.rows if not row.refused]
    assert all(row.exact and row.psnr and row.ssim and row.changed for row in taken)
    assert {row.mode for row in taken if row.payload == 0.05} == set(MODES)
    assert all(row.exact is None for row in report.rows if row.refused)
    assert {row.refused for row in report.rows} <= {"", "capacity", "modelled"}


def test_skipped_files_have_their_reason(report: Report) -> None:
    assert sorted(report.skipped.values()) == ["colour", "not-part10"]


def test_growth_is_measured_on_every_third_tile(report: Report) -> None:
    measured = {row.path for row in report.rows if row.growth is not None}
    assert len(measured) == 2
    pee = [row for row in report.rows if row.mode == "plain-pee" and row.growth]
    assert pee and all(row.growth["jpegls"] > 0 and row.growth["dual"] > 0 for row in pee if row.growth)


def test_auc_columns_are_there_for_every_detector_modality_and_carrier(report: Report) -> None:
    columns = {(v.detector, v.modality, v.mode, v.payload) for v in report.verdicts if v.tiles == "all"}
    for detector in DETECTORS:
        for mode in ("hidden", "segmented", "lsb-replacement", "lsb-matching", "plain-pee"):
            assert (detector, "all", mode, 0.05) in columns and (detector, "CT", mode, 0.05) in columns
    found = {(v.detector, v.mode): v.found for v in report.verdicts if (v.modality, v.payload) == ("all", 0.4)}
    assert all(0 <= f.auc <= 1 and f.patients <= 3 and f.low is not None for f in found.values())
    assert found["WS", "lsb-replacement"].auc > max(0.65, found["WS", "lsb-matching"].auc)
    assert {v.trained for v in report.verdicts if v.detector == "SPAM"} == {"all"}


def test_report_names_no_patient_and_is_plain_json(report: Report, folder: Path) -> None:
    text = (folder.parent / "report.json").read_text()
    assert "SECRET" not in text and "Quastenflosser" not in text
    read = json.loads(text)
    assert len(read["rows"]) == len(report.rows) and len(read["verdicts"]) == len(report.verdicts)
    assert {row["patient"] for row in read["rows"]} == {0, 1, 2}


def test_table_has_carriers_payloads_and_detectors(report: Report) -> None:
    text = format_table(report)
    for word in (*MODES, *DETECTORS, "0.05", "0.4", "capacity" if any(r.refused for r in report.rows) else "exact"):
        assert word in text
    assert "1 colour 1 not-part10" in text and "sealwatch 20" in text


def test_bench_is_repeatable(folder: Path, report: Report) -> None:
    again = bench([folder / "0-0.dcm"], Plan(("hidden",), (0.05,), Choice(SIDE, 1, 4), detectors=False))
    first = next(r for r in report.rows if (r.mode, r.payload) == ("hidden", 0.05) and r.path.endswith("0-0.dcm"))
    assert again.rows[0].psnr == first.psnr and again.rows[0].changed == first.changed
    assert again.verdicts == [] and again.detectors == "none asked for"


def test_refused_before_anything_is_measured_without_the_extra(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> None:
        raise NoDetectors

    monkeypatch.setattr(payload_bench, "load", missing)
    with pytest.raises(NoDetectors):
        bench([folder], Plan())
    done = CliRunner().invoke(app, ["payload", "bench", str(folder)])
    assert done.exit_code == 1 and "palimpsest[bench]" in done.output


def test_one_patient_gives_no_verdict() -> None:
    evidence = Evidence()
    for number in range(4):
        evidence.cover(number, "CT", 7, True, {"SPA": np.zeros(1, np.float32)})
        evidence.stego(number, "hidden", 0.1, {"SPA": np.ones(1, np.float32)})
    assert judge(evidence) == []


def test_patients_have_a_classifier_of_their_own_modality_when_there_are_enough() -> None:
    evidence, rng = Evidence(), np.random.default_rng(1)
    for number in range(16):
        patient = number // 2
        modality = "MR" if patient < 5 else "CT"
        suited = patient < 7
        seen = {name: rng.normal(0, 1, 1 if name in ("SPA", "WS") else 20).astype(np.float32) for name in DETECTORS}
        evidence.cover(number, modality, patient, suited, seen)
        evidence.stego(number, "x", 0.1, {name: value + 2 for name, value in seen.items()})
    verdicts = judge(evidence)
    trained = {v.modality: v.trained for v in verdicts if (v.detector, v.tiles) == ("SPAM", "suited")}
    assert trained == {"all": "all", "MR": "modality", "CT": "all"}
    assert {v.trained for v in verdicts if v.tiles == "all"} == {"", "all"}
    assert {v.found.patients for v in verdicts if (v.modality, v.tiles) == ("all", "suited")} == {7}


@pytest.mark.parametrize("mode", sorted(MODES))
def test_every_carrier_proves_itself(mode: str, tile: Tile) -> None:
    outcome = run(mode, make_job(tile, mode, 0.02))
    assert outcome.exact and outcome.embed_ms > 0
    assert not np.array_equal(outcome.values, tile.cover.values)


def test_a_region_is_kept_to(tmp_path: Path) -> None:
    (tmp_path / "large.dcm").write_bytes(image([scan(5, 224, 224)], stored=12))
    tile = next(tiles([tmp_path], Choice(224), {}))
    mask = non_interest(tile.cover.values)
    outcome = run("plain-pee+classical", make_job(tile, "plain-pee+classical", 0.02))
    assert outcome.exact and not (outcome.values != tile.cover.values)[~mask].any()
    assert known("hidden+classical") and not known("hidden+") and not known("nothing") and not known("hidden+nowhere")


def test_psnr_and_ssim_by_hand() -> None:
    cover = np.zeros((16, 16), np.int32)
    cover[0, 0] = 100
    assert psnr(cover, cover + 1) == pytest.approx(40.0)
    assert math.isinf(psnr(cover, cover)) and ssim(cover, cover) == pytest.approx(1.0)
    busy = np.random.default_rng(0).integers(0, 1000, (64, 64)).astype(np.int32)
    assert ssim(busy, busy + 1) > 0.9999 > 0.1 > ssim(busy, busy[::-1])


def test_sizes_tell_noise_from_order(tile: Tile) -> None:
    cover = tile.cover.values
    noise = cover + np.random.default_rng(0).integers(-40, 41, cover.shape, dtype=np.int32)
    before, after = sizes(cover, tile.words(cover), tile.fmt), sizes(noise, tile.words(noise), tile.fmt)
    assert all(after[name] > before[name] > 0 for name in before)


def test_tiles_are_the_lively_ones() -> None:
    values = np.zeros((300, 200), np.int32)
    values[100:200, 100:200] = np.random.default_rng(0).integers(0, 9, (100, 100))
    assert places(values, Choice(100, 2)) == [(100, 100, 100, 100)]
    assert places(values[:60, 120:], Choice(100, 2)) == []


def test_images_of_a_patient_are_limited(folder: Path) -> None:
    found = list(tiles([folder], Choice(48, 2, 1), {}))
    assert len(found) == 6 and [t.patient for t in found] == [0, 0, 1, 1, 2, 2]


def test_export_uses_all_of_eight_bits(tile: Tile) -> None:
    small = eight_bits(tile)
    assert small.cover.values.min() == 0 and small.cover.values.max() == 255
    assert small.words(small.cover.values).dtype == np.uint8
    flat = Cover(np.full((64, 64), 7, np.int32), 0, 4095)
    assert eight_bits(Tile("", "", 0, (0, 0), flat, tile.fmt, False)).cover.values.max() == 0


JAVA = """#!{python}
import sys, pathlib
jar, folder, speed, threshold, out = sys.argv[2:]
head = "File name,Above stego threshold?,Secret message size in bytes (ignore for clean files),Primary Sets,Chi Square"
files = sorted(path.name for path in pathlib.Path(folder).iterdir())[{skip}:]
lines = [f"{{name}},{{'false' if i == 0 else 'true'}},12,null,0.1,0.3,0.2,0.2" for i, name in enumerate(files)]
pathlib.Path(out).write_text("\\n".join(["", head, *lines]) + "\\n")
"""


@pytest.mark.parametrize("skip", [0, 1])
def test_stegexpose_is_run_and_counted(skip: int, tile: Tile, tmp_path: Path) -> None:
    """A stand-in for Java that answers as RunStegExpose.java prints: an empty line, a head, a line for each file."""
    java = tmp_path / "java"
    java.write_text(JAVA.format(python=sys.executable, skip=skip))
    java.chmod(java.stat().st_mode | stat.S_IXUSR)
    stegexpose = StegExpose(tmp_path / "StegExpose.jar", str(java))
    if skip:
        with pytest.raises(Unsupported, match="did not judge every file"):
            stegexpose.flag([tile], ["hidden"], [0.05])
        return
    found = {(f.mode, f.payload): (f.files, f.flagged) for f in stegexpose.flag([tile], ["hidden"], [0.05])}
    assert found == {(COVER, 0.0): (1, 0), ("hidden", 0.05): (1, 1)}


def test_stegexpose_that_does_not_run_is_said(tile: Tile, tmp_path: Path) -> None:
    with pytest.raises(Unsupported, match="did not run"):
        StegExpose(tmp_path / "none.jar", str(tmp_path / "no-java")).flag([tile], [], [])


def test_command_line(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "figures.json"
    arguments = [
        "--json",
        str(out),
        "--modes",
        "hidden, plain-pee",
        "--payloads",
        ".02",
        "--side",
        "96",
        "--no-detectors",
    ]
    done = CliRunner().invoke(app, ["payload", "bench", str(folder), *arguments])
    assert done.exit_code == 0, done.output
    assert {row["mode"] for row in json.loads(out.read_text())["rows"]} == {"hidden", "plain-pee"}
    assert "distances, growth, speed" in done.output and "skipped" in done.output
    for wrong in (["--modes", "nothing"], ["--payloads", "much"]):
        assert CliRunner().invoke(app, ["payload", "bench", str(folder), *wrong]).exit_code == 2
