"""On a CUDA device: the same bytes as the CPU kernels, for golden-like and random tiles, batches and whole frames."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from codec.frame import decode_frame, encode_frame
from codec.gpu import Batcher, Device, using
from codec.gpu_device import CudaDevice
from codec.gpu_jobs import EncodeJob, Processor
from codec.pixelformat import PixelFormat
from tests.unit.codec_networks import known, weight_file
from tests.unit.test_codec_gpu import CPU, JOBS, check_golden_frames, damaged, decoding, job

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(1200)]


@pytest.mark.parametrize("name", JOBS)
def test_tiles(device: Device, name: str) -> None:
    each = JOBS[name]
    [words] = CPU.encode([each])
    assert np.array_equal(device.encode([each])[0], words)
    [tile] = device.decode([decoding(each, words)])
    assert tile is not None and np.array_equal(tile.samples, each.tile)
    assert np.array_equal(tile.head, CPU.decode([decoding(each, words)])[0].head)


@pytest.mark.parametrize("size", [1, 2, 16, 256])
def test_batches(device: Device, size: int) -> None:
    some = list(JOBS.values())
    jobs = [some[number % len(some)] for number in range(size)]
    words = CPU.encode(jobs)
    assert all(map(np.array_equal, device.encode(jobs), words))
    same_tiles(device, jobs, words)


def same_tiles(device: Device, jobs: list[EncodeJob], words: list[object]) -> None:
    """Decoded by the device: the samples, and the heads that the CPU kernels leave."""
    back = [decoding(each, text) for each, text in zip(jobs, words, strict=True)]
    for tile, wanted, each in zip(device.decode(back), CPU.decode(back), jobs, strict=True):
        assert tile is not None and wanted is not None
        assert np.array_equal(tile.samples, each.tile) and np.array_equal(tile.head, wanted.head)


@pytest.mark.parametrize("groups", [1, 2, 4, 8])
def test_threads_of_a_block(device: Device, groups: int) -> None:
    other = CudaDevice(0, groups=groups)
    jobs = list(JOBS.values())
    assert all(map(np.array_equal, other.encode(jobs), CPU.encode(jobs)))


@pytest.mark.parametrize("round", range(4))
def test_random_tiles(device: Device, round: int) -> None:
    jobs = [random_job(1000 * round + seed) for seed in range(64)]
    words = CPU.encode(jobs)
    assert all(map(np.array_equal, device.encode(jobs), words))
    same_tiles(device, jobs, words)


def random_job(seed: int) -> EncodeJob:
    rng = np.random.default_rng(5000 + seed)
    highest = int(rng.integers(1, 1 << int(rng.integers(1, 17))))
    k = int(rng.integers(1, highest.bit_length() + 1))
    return job(
        seed, int(rng.integers(1, 90)), int(rng.integers(1, 300)), highest, k=k,
        raw=int(rng.integers(0, min(4, k) + 1)), sets=int(rng.choice([0, 1, 2, 5, 9])),
        states=1 << int(rng.integers(0, 5)), rate=int(rng.choice([0, 7, 9, 10, 14])),
        previous=bool(rng.integers(0, 2)), components=int(rng.integers(1, 5)), head=bool(rng.integers(0, 2)),
        hidden=(int(rng.integers(5, 40)), int(rng.integers(5, 30))),
    )  # fmt: skip


@pytest.mark.parametrize("name", ["raw", "G", "before", "learning"])
def test_damaged_streams(device: Device, name: str) -> None:
    each = JOBS[name]
    for words in damaged(CPU.encode([each])[0]):
        [here], [there] = device.decode([decoding(each, words)]), CPU.decode([decoding(each, words)])
        assert (here is None) == (there is None)
        assert here is None or all(map(np.array_equal, here, there))


@pytest.mark.parametrize("profile", ["fast", "default", "max"])
def test_whole_frames_by_many_threads(device: Device, profile: str) -> None:
    with known(weight_file()):
        whole_frames(device, profile)


def whole_frames(device: Device, profile: str) -> None:
    fmt = PixelFormat(96, 128, 1, 16, 12, 11, False)
    frames = [(job(seed, 96, 128, 4095).tile).astype(np.uint16) for seed in range(12)]
    alone = [encode_frame(words, fmt, profile=profile).blob for words in frames]
    batcher = Batcher(device, Processor())

    def together(words: object) -> bytes:
        with using(batcher):
            return encode_frame(words, fmt, profile=profile).blob  # type: ignore[arg-type]

    with ThreadPoolExecutor(12) as pool:
        assert list(pool.map(together, frames)) == alone
    with using(batcher):
        assert all(np.array_equal(decode_frame(blob).words, words) for blob, words in zip(alone, frames, strict=True))
    assert batcher.lost is None and batcher.tally.launches > 0
    batcher.close()


def test_golden_frames(device: Device) -> None:
    check_golden_frames(device)
