"""A CUDA device that codes tiles (`codec.gpu.Device`): the phases compiled by numba.cuda, memory, launches.

Needs a driver and NVVM: the CUDA toolkit, or `pip install 'palimpsest[gpu]'`. Only this module imports numba.cuda, and
only inside its functions: merely looking for a driver takes time, and CUDA does not survive a fork.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from importlib import import_module
from types import TracebackType
from typing import Any

import numpy as np

from codec import gpu_kernel, gpu_lanes
from codec.errors import CodecError
from codec.gpu import DeviceLost, NoDevice
from codec.gpu_jobs import Decoded, DecodeJob, EncodeJob, Processor
from codec.gpu_kernel import LATE_ROOM, PART_ROOM
from codec.gpu_lanes import LANES
from codec.gpu_pack import Batch, Job, fits, pack_batch
from codec.gpu_port import Port
from codec.wave import geometry
from codec.wavecontext import CELLS
from codec.wavetables import AROUND_STRIDE

__all__ = ["CudaDevice", "kernels", "main", "signatures", "try_device"]

# Groups of 16 lanes that share a tile's network and head: as many as the registers of one multiprocessor leave room for
# when this many tiles come to it (docs/gpu.md).
GROUPS = ((3, 8), (6, 4))
REGISTERS = 168  # of a thread, at most: with more, a multiprocessor has room for a tile less
FEWEST_GROUPS = 2
INSTALL = "CUDA's compiler, pip install 'palimpsest[gpu]', and an NVIDIA driver no older than it are needed"
MASTER_ROOM = 1 << 13  # int32 of a tile: more than its master weights take
MEMORY_SHARE = 0.8  # of the device's free memory that a launch may take


def kernels(cuda: Any) -> tuple[Callable[..., None], Callable[..., None]]:
    """The bodies of the kernels for encoding and decoding, to be given to cuda.jit: one block a tile.

    `cuda`: the module numba.cuda, or one that stands in for it.
    """
    gpu_lanes.register_for_cuda()
    barrier = cuda.jit(device=True)(lambda: cuda.syncthreads())

    @cuda.jit(device=True)
    def add_at(array: Any, place: Any, value: Any) -> None:
        cuda.atomic.add(array, place, value)

    port = Port(cuda.jit(device=True), {"meet": barrier, "add_at": add_at})
    encode_block, decode_block = port(gpu_kernel.encode_block), port(gpu_kernel.decode_block)

    def encode(tiles: Any, pool: Any, samples: Any, starts: Any, freqs: Any, words: Any, results: Any, slow: Any,
               parts: Any) -> None:  # fmt: skip
        number, thread, threads = cuda.blockIdx.x, cuda.threadIdx.x, cuda.blockDim.x
        fast = cuda.shared.array(0, np.int32)
        counts, state = cuda.shared.array(3, np.int64), cuda.shared.array(LANES, np.int64)
        encode_block(
            tiles[number], pool, samples, starts, freqs, words, results[number], fast, slow, parts[number], counts,
            state, thread, threads,
        )  # fmt: skip

    def decode(tiles: Any, pool: Any, samples: Any, words: Any, results: Any, slow: Any, parts: Any) -> None:
        number, thread, threads = cuda.blockIdx.x, cuda.threadIdx.x, cuda.blockDim.x
        fast = cuda.shared.array(0, np.int32)
        counts, state = cuda.shared.array(3, np.int64), cuda.shared.array(LANES, np.int64)
        decode_block(
            tiles[number], pool, samples, words, results[number], fast, slow, parts[number], counts, state, thread,
            threads,
        )  # fmt: skip

    return encode, decode


def signatures(types: Any) -> tuple[Any, Any]:
    """The kernels' arguments, for compiling them before the first launch."""
    table, line, words, parts = types.int64[:, ::1], types.int32[::1], types.uint32[::1], types.float64[:, ::1]
    return (
        types.void(table, line, line, line, line, words, table, line, parts),
        types.void(table, line, line, words, table, line, parts),
    )


class CudaDevice:
    """Device `number`, its kernels compiled. Raises NoDevice with what is missing. groups: None: by the batch's size.

    Safe in one thread at a time (`codec.gpu.Batcher` is that thread).
    """

    def __init__(self, number: int = 0, groups: int | None = None) -> None:
        self._number, self._given, self._rest = number, groups, Processor()
        self._cuda, self._name, self._processors = find_device(number)
        with _found_out(number), self._cuda.gpus[number]:
            from numba import types

            self.uuid = str(getattr(self._cuda.get_current_device(), "uuid", ""))
            encode, decode = kernels(self._cuda)
            encode_types, decode_types = signatures(types)
            self._encode = self._cuda.jit(encode_types, max_registers=REGISTERS)(encode)
            self._decode = self._cuda.jit(decode_types, max_registers=REGISTERS)(decode)

    def __str__(self) -> str:
        return f"CUDA device {self._number}: {self._name}"

    def encode(self, jobs: Sequence[EncodeJob]) -> list[Any]:
        """See `codec.gpu.Device`."""
        return self._spread(jobs, self._encode_batch, self._rest.encode)

    def decode(self, jobs: Sequence[DecodeJob]) -> list[Any]:
        """See `codec.gpu.Device`."""
        return self._spread(jobs, self._decode_batch, self._rest.decode)

    def _spread(self, jobs: Sequence[Any], here: Callable[[Sequence[Any]], list[Any]],
                elsewhere: Callable[[Sequence[Any]], list[Any]]) -> list[Any]:  # fmt: skip
        """Results in the order of the jobs; what the kernels have no room for is done by the processor."""
        mine = [number for number, job in enumerate(jobs) if fits(job.setting.network)]
        others = sorted(set(range(len(jobs))) - set(mine))
        out: list[Any] = [None] * len(jobs)
        with _lost(), self._cuda.gpus[self._number]:
            for part in self._parts(mine, jobs):
                for number, result in zip(part, here([jobs[number] for number in part]), strict=True):
                    out[number] = result
        for number, result in zip(others, elsewhere([jobs[number] for number in others]), strict=True):
            out[number] = result
        return out

    def _parts(self, numbers: Sequence[int], jobs: Sequence[Job]) -> Iterator[list[int]]:
        """Runs of jobs, each small enough for the device's memory."""
        room = MEMORY_SHARE * float(self._cuda.current_context().get_memory_info().free)
        part: list[int] = []
        used = 0
        for number in numbers:
            size = job_bytes(jobs[number])
            if part and used + size > room:
                yield part
                part, used = [], 0
            part.append(number)
            used += size
        if part:
            yield part

    def _encode_batch(self, jobs: Sequence[EncodeJob]) -> list[Any]:
        batch, cuda = pack_batch(jobs), self._cuda
        steps = max(batch.steps, 1)
        starts, freqs = cuda.device_array(steps, np.int32), cuda.device_array(steps, np.int32)
        words, results = cuda.device_array(max(batch.words.size, 1), np.uint32), cuda.to_device(batch.results)
        self._launch(self._encode, batch, cuda.to_device(batch.samples), starts, freqs, words, results)
        words.copy_to_host(batch.words)
        results.copy_to_host(batch.results)
        return [batch.stream(number) for number in range(len(jobs))]

    def _decode_batch(self, jobs: Sequence[DecodeJob]) -> list[Any]:
        batch, cuda = pack_batch(jobs), self._cuda
        samples, results = cuda.device_array(batch.samples.size, np.int32), cuda.to_device(batch.results)
        text = batch.words if batch.words.size else np.zeros(1, np.uint32)
        slow = self._launch(self._decode, batch, samples, cuda.to_device(text), results)
        samples.copy_to_host(batch.samples)
        results.copy_to_host(batch.results)

        def decoded(number: int) -> Decoded:
            head = jobs[number].setting.network.unpack_head(slow[batch.master(number)].copy_to_host())
            return Decoded(batch.plane(number), head)

        return [decoded(number) if batch.closed(number) else None for number in range(len(jobs))]

    def groups(self, tiles: int) -> int:
        """Groups of lanes for a launch of so many tiles."""
        if self._given is not None:
            return self._given
        return next((count for most, count in GROUPS if tiles <= most * self._processors), FEWEST_GROUPS)

    def _launch(self, kernel: Any, batch: Batch, *arrays: Any) -> Any:
        """Run a kernel; the tiles' slow memory on the device."""
        cuda = self._cuda
        slow = cuda.device_array(max(batch.late, 1), np.int32)
        parts = cuda.device_array((len(batch.tiles), PART_ROOM), np.float64)
        launch = kernel[len(batch.tiles), self.groups(len(batch.tiles)) * LANES, 0, batch.fast * 4]
        launch(cuda.to_device(batch.tiles), cuda.to_device(batch.pool), *arrays, slow, parts)
        cuda.synchronize()
        return slow


def job_bytes(job: Job) -> int:
    """Bytes of device memory that a job needs, at most."""
    encoding = isinstance(job, EncodeJob)
    rows, columns = job.tile.shape if isinstance(job, EncodeJob) else job.shape
    period, steps = geometry(rows, columns)[2:]
    around = (job.upper is not None) + (job.previous is not None)
    words = (3 if encoding else 2) * rows * columns
    heads = MASTER_ROOM * (1 + (job.head is not None))  # one that goes on is in the pool, too
    slow = period * LATE_ROOM + 2 * CELLS + heads + encoding * 2 * LANES * steps
    return int(4 * (rows * columns + words + around * steps * AROUND_STRIDE + slow))


def find_device(number: int) -> tuple[Any, str, int]:
    """numba.cuda, the device's name and its multiprocessors; nothing is compiled. Raises NoDevice."""
    try:
        cuda: Any = import_module("numba.cuda")
    except ImportError:
        raise NoDevice(f"{_cannot(number)}: numba has no CUDA target ({INSTALL})") from None
    with _found_out(number):
        if not cuda.is_available():
            raise NoDevice(f"{_cannot(number)}: {_why_none(cuda)} ({INSTALL})")
        if number >= len(cuda.gpus):
            raise NoDevice(f"{_cannot(number)}: there are {len(cuda.gpus)}, counted from 0")
        with cuda.gpus[number]:
            device = cuda.get_current_device()
            name = device.name.decode() if isinstance(device.name, bytes) else device.name
            return cuda, str(name), int(device.MULTIPROCESSOR_COUNT)


def try_device(number: int) -> str:
    """The device's name, once its driver has linked and loaded a small kernel: an old one refuses what a newer compiler
    makes. Raises NoDevice.
    """
    cuda, name, _ = find_device(number)
    with _found_out(number), cuda.gpus[number]:
        from numba import types

        def one(out: Any) -> None:
            out[0] = 1

        cuda.jit(types.void(types.int32[::1]))(one)
    return name


def _cannot(number: int) -> str:
    return f"CUDA device {number} cannot be used"


def _why_none(cuda: Any) -> str:
    """What is missing, in words for whoever runs the command."""
    error = cuda.cuda_error()
    lines = str(error).strip().splitlines() if error else []
    return next((line for line in lines if line and not line.startswith("Error at")), "no device answers").rstrip(".")


class _Translated:
    """Around calls of numba.cuda: what it, and NVIDIA's packages under it, raise becomes `error` with its first line.

    By package, for the classes have no base of their own and move from release to release: numba's LinkerError,
    cuda.core's CUDAError, nvJitLinkError. also: classes that count wherever they come from.
    """

    def __init__(self, error: Callable[[str], CodecError], *also: type[Exception]) -> None:
        self._error, self._also = error, also

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, raised: BaseException | None, _: TracebackType | None) -> None:
        if not isinstance(raised, Exception):
            return
        if type(raised).__module__.partition(".")[0] in ("numba", "cuda") or isinstance(raised, self._also):
            lines = str(raised).strip().splitlines()
            raise self._error(lines[0] if lines else type(raised).__name__) from raised


def _found_out(number: int) -> _Translated:
    """Where a part of CUDA is missing (ImportError), or the driver lacks what it asks for (RuntimeError): NoDevice."""
    return _Translated(lambda text: NoDevice(f"{_cannot(number)}: {text} ({INSTALL})"), RuntimeError, ImportError)


def _lost() -> _Translated:
    """What is raised while a device works becomes DeviceLost."""
    return _Translated(DeviceLost)


def main(arguments: Sequence[str] | None = None) -> int:
    """`python -m codec.gpu_device [NUMBER]`: whether that device can be used: 0 and what it is, or 1 and why not."""
    number = int((arguments if arguments is not None else sys.argv[1:] or ["0"])[0])
    try:
        print(f"CUDA device {number}: {try_device(number)}")
    except NoDevice as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
