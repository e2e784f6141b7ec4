"""The GPU bench without a GPU: what it measures is right, and without a device it says so."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from codec import gpu_device
from codec.gpu import NoDevice
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


def refused_as(module: str, name: str, text: str, base: type[Exception] = Exception) -> Exception:
    """An error of a class of this name that lives in that package, which need not be installed."""
    return type(name, (base,), {"__module__": module})(text)


PTX_TOO_NEW = """[222] Call to cuLinkAddData results in CUDA_ERROR_UNSUPPORTED_PTX_VERSION
ptxas application ptx input, line 9; fatal   : Unsupported .version 9.0; current version is '8.0'"""


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (refused_as("numba.cuda.cudadrv.driver", "LinkerError", PTX_TOO_NEW, RuntimeError), "UNSUPPORTED_PTX_VERSION"),
        (refused_as("numba.cuda.cudadrv.driver", "LinkerError", "", RuntimeError), "LinkerError"),
        (refused_as("cuda.core.cu13._utils.cuda_utils", "CUDAError", "CUDA_ERROR_INVALID_IMAGE"), "INVALID_IMAGE"),
        (refused_as("cuda.bindings.nvjitlink", "nvJitLinkError", "ERROR_PTX_COMPILE (4)"), "ERROR_PTX_COMPILE"),
        (RuntimeError('Function "cuCtxCreate_v4" not found'), "cuCtxCreate_v4"),
    ],
)
def test_a_driver_too_old_for_the_compiled_kernels_is_no_device(
    error: Exception, told: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def jit(*_: Any, **__: Any) -> Any:
        raise error

    cuda = SimpleNamespace(jit=jit, gpus=[contextlib.nullcontext()], get_current_device=lambda: None)
    monkeypatch.setattr(gpu_device, "find_device", lambda number: (cuda, "Tesla", 80))
    monkeypatch.setattr(gpu_device, "kernels", lambda found: (None, None))
    assert gpu_device.main(["0"]) == 1  # what a worker asks before it starts
    assert main(["--device", "0"]) == 1  # what opens the device itself
    with pytest.raises(NoDevice) as caught:
        gpu_device.CudaDevice(0)
    texts = {*capsys.readouterr().err.splitlines(), str(caught.value)}
    assert len(texts) == 1  # one line, the same from everybody
    assert (text := texts.pop()).startswith("CUDA device 0 cannot be used: ") and told in text and "driver" in text


def test_a_fault_of_ours_on_a_device_is_not_taken_for_a_missing_one(monkeypatch: pytest.MonkeyPatch) -> None:
    def jit(*_: Any) -> Any:
        raise ZeroDivisionError

    cuda = SimpleNamespace(jit=jit, gpus=[contextlib.nullcontext()])
    monkeypatch.setattr(gpu_device, "find_device", lambda number: (cuda, "Tesla", 80))
    with pytest.raises(ZeroDivisionError):
        gpu_device.try_device(0)
