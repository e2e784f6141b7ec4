"""The device kernels are compiled for sm_90 where NVVM is at hand; no device and no driver is needed for that."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.device_code import NO_NVVM
from tests.running import ROOT


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_kernels_compile_for_a_device() -> None:
    command = [sys.executable, str(ROOT / "tests/device_code.py"), "9.0"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode == NO_NVVM:
        pytest.skip("NVVM is not here: CUDA toolkit, or pip install 'palimpsest[gpu]'")
    assert done.returncode == 0, done.stderr[-2000:]
