"""The bench: figures that add up, skipped files with a reason, JSON that says the same."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.object_makers import image, noisy, packaged
from worker.bench import CODECS, bench, format_table


def test_report(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.dcm").write_bytes(image([noisy(32, 32), noisy(32, 32, seed=2)], stored=12))
    (tmp_path / "in" / "b.dcm").write_bytes(packaged("rtplan.dcm"))
    (tmp_path / "in" / "c.txt").write_bytes(b"no dicom")
    seen = []
    report = bench([tmp_path / "in"], tmp_path / "out.json", 1, seen.append)
    assert [row.path for row in report.rows] == [row.path for row in seen] == [str(tmp_path / "in" / "a.dcm")]
    assert set(report.skipped.values()) == {"no-pixels", "not-part10"}
    row = report.rows[0]
    assert (row.frames, row.raw, row.samples, row.bits_stored) == (2, 2 * 32 * 32 * 2, 1, 12)
    assert all(row.bytes[name] > 0 for name in (*CODECS, "dual", "ours"))
    assert row.bytes["ours"] <= row.bytes["dual"]
    assert row.objects["envelope"] > row.bytes["ours"]
    assert row.objects["jxl"] > row.bytes["jxl"]
    assert report.means["ours/jxl"] == pytest.approx(row.bytes["ours"] / row.bytes["jxl"], abs=1e-4)
    assert json.loads((tmp_path / "out.json").read_text())["rows"][0]["bytes"] == row.bytes
    table = format_table(report)
    assert "a.dcm" in table
    assert "1 objects, 2 skipped" in table


def test_nothing_to_measure(tmp_path: Path) -> None:
    report = bench([tmp_path])
    assert (report.rows, report.means) == ([], {})
    assert format_table(report).endswith("0 objects, 0 skipped, 0 worse than allowed")
