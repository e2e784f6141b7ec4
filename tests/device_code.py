"""The device kernels compiled to machine code, which needs no device and no driver; exit 77 where NVVM is not at hand.

    python tests/device_code.py 8.0 9.0      compute capabilities; needs only the installed package, tests or not

NVVM makes PTX. ptxas makes machine code of it: NVIDIA's program, or the same as a library (nvJitLink), as numba does.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

NO_NVVM = 77
MADE_FOR = (9, 0)  # H100, H200: what the choices of docs/gpu.md were made for
MOST_SPILLED = 128  # bytes that a thread of any other device may keep in slow memory


def by_library(ptx: str, architecture: str, registers: int) -> str:
    """What nvJitLink says of a kernel. Raises what cuda.bindings raises."""
    from cuda.bindings import nvjitlink

    options = [f"-arch={architecture}", "-verbose", f"-maxrregcount={registers}"]
    link, text = nvjitlink.create(len(options), options), ptx.encode()
    nvjitlink.add_data(link, nvjitlink.InputType.PTX, text, len(text), "kernel")
    nvjitlink.complete(link)
    assert nvjitlink.get_linked_cubin_size(link) > 0
    said = bytearray(nvjitlink.get_info_log_size(link))
    nvjitlink.get_info_log(link, said)
    return said.decode("ascii", "replace")


def by_program(program: str, ptx: str, architecture: str, registers: int) -> str:
    """What ptxas says of a kernel. Raises CalledProcessError."""
    with tempfile.NamedTemporaryFile("w", suffix=".ptx") as file:
        file.write(ptx)
        file.flush()
        command = [program, "-v", f"-arch={architecture}", f"-maxrregcount={registers}", "-o", "/dev/null", file.name]
        return subprocess.run(command, check=True, capture_output=True, text=True).stderr


def machine_code(ptx: str, architecture: str, registers: int) -> str:
    """What the assembler says of a kernel, "" where there is none."""
    program = shutil.which("ptxas") or str(next(Path("/usr/local/cuda/bin").glob("ptxas"), ""))
    try:
        import numba_cuda  # noqa: F401  its NVVM may be newer than a toolkit's ptxas
    except ImportError:
        return by_program(program, ptx, architecture, registers) if program else ""
    return by_library(ptx, architecture, registers)


def check(cuda: Any, types: Any, capability: tuple[int, int]) -> None:
    """Compile both kernels; what they must and must not contain."""
    from codec.gpu_device import GROUPS, REGISTERS, kernels, signatures
    from codec.gpu_lanes import LANES

    architecture = "sm_{}{}".format(*capability)
    for tiles, groups in GROUPS:  # registers are given out by 256 to a warp; a multiprocessor has 65,536
        assert tiles * (groups * LANES // 32) * -(-REGISTERS * 32 // 256) * 256 <= 65_536
    for name, kernel, signature in zip(("encode", "decode"), kernels(cuda), signatures(types), strict=True):
        ptx, _ = cuda.compile_ptx(kernel, signature.args, cc=capability)
        assert "dp2a.lo.s32.s32" in ptx and "dp2a.hi.s32.s32" in ptx and "bar.sync" in ptx
        assert "red." in ptx or "atom." in ptx
        assert "__local_depot" not in ptx  # nothing a thread keeps is in slow memory
        if said := machine_code(ptx, architecture, REGISTERS):
            used, spilled = (int(re.findall(form, said)[0]) for form in (r"Used (\d+) regis", r"(\d+) bytes stack"))
            assert used <= REGISTERS and spilled <= (0 if capability == MADE_FOR else MOST_SPILLED), said
            print(f"{name} for {architecture}: {used} registers, {spilled} bytes spilled", flush=True)


def main() -> None:
    """See above."""
    from numba import cuda, types
    from numba.cuda import dispatcher
    from numba.cuda.cudadrv.error import NvvmSupportError
    from numba.cuda.cudadrv.nvvm import NVVM

    try:
        NVVM()
    except (NvvmSupportError, OSError) as error:
        print(error)
        sys.exit(NO_NVVM)
    for text in sys.argv[1:]:
        major, minor = map(int, text.split("."))
        asked = SimpleNamespace(compute_capability=(major, minor))
        dispatcher.get_current_device = lambda asked=asked: asked  # asked for device functions, too
        check(cuda, types, (major, minor))


if __name__ == "__main__":
    main()
