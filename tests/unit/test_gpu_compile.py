"""The device kernels are compiled for sm_90 where NVVM is at hand; no device and no driver is needed for that."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
NO_NVVM = 77
COMPILE = f"""
import sys
from types import SimpleNamespace
from numba import cuda, types
from numba.cuda import dispatcher
from numba.cuda.cudadrv.error import NvvmSupportError
from numba.cuda.cudadrv.nvvm import NVVM
try:
    NVVM()
except (NvvmSupportError, OSError) as error:
    print(error)
    sys.exit({NO_NVVM})
dispatcher.get_current_device = lambda: SimpleNamespace(compute_capability=(9, 0))  # asked for device functions, too
from codec.gpu_device import kernels, signatures
for kernel, signature in zip(kernels(cuda), signatures(types)):
    ptx, _ = cuda.compile_ptx(kernel, signature.args, cc=(9, 0))
    assert "dp2a.lo.s32.s32" in ptx and "dp2a.hi.s32.s32" in ptx and "bar.sync" in ptx
    assert "red." in ptx or "atom." in ptx
    assert "__local_depot" not in ptx  # nothing a thread keeps is in slow memory
"""


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_kernels_compile_for_a_device() -> None:
    done = subprocess.run([sys.executable, "-c", COMPILE], cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode == NO_NVVM:
        pytest.skip("NVVM is not here: CUDA toolkit, or pip install 'palimpsest[gpu]'")
    assert done.returncode == 0, done.stderr[-2000:]
