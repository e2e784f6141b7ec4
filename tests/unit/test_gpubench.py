"""The GPU bench without a GPU: what it measures is right, and without a device it says so."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from codec.gpu_jobs import Processor
from tests.unit.codec_networks import known, weight_file
from worker.gpubench import format_report, main, measure, synthetic


@pytest.fixture(autouse=True, scope="module")
def weights() -> Iterator[object]:
    with known(weight_file()) as added:
        yield added


ROOT = Path(__file__).resolve().parents[2]


def test_the_synthetic_volume_is_the_same_each_time() -> None:
    first, second = (list(synthetic(3, 40)) for _ in range(2))
    assert all(np.array_equal(a[0], b[0]) for a, b in zip(first, second, strict=True))
    assert {words.shape for words, _ in first} == {(40, 40)} and max(int(words.max()) for words, _ in first) > 1000


def test_every_batch_size_is_measured_and_compared() -> None:
    report = measure(synthetic(3, 40), Processor(), "three slices", "default", batches=(1, 2, 64))
    assert report.exact and [speed.batch for speed in report.speeds] == [1, 2, 3]
    assert all(speed.encode_mp_s > 0 and speed.decode_mp_s > 0 for speed in report.speeds)
    assert "exact" in format_report(report) and "three slices" in format_report(report)


def test_a_device_that_errs_is_found_out() -> None:
    class Wrong(Processor):
        def decode(self, jobs):  # type: ignore[no-untyped-def]
            return [tile._replace(samples=tile.samples + 1) for tile in super().decode(jobs)]

    assert not measure(synthetic(1, 24), Wrong(), "one slice", "default").exact


def test_without_a_device_it_ends_with_the_reason(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--device", "99"]) == 1
    assert "99" in capsys.readouterr().err


def test_make_test_gpu_ends_with_the_reason_where_there_is_no_device() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "codec.gpu_device", "99"], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 1 and "CUDA device 99 cannot be used" in done.stderr and "Traceback" not in done.stderr
