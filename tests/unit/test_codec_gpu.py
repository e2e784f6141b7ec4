"""The device kernels without a device: the same bytes as the CPU kernels, whatever order a block's threads take."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from codec.dualformat import Predictors
from codec.frame import decode_frame, encode_frame
from codec.gpu import Batcher, Device, using
from codec.gpu_jobs import DecodeJob, EncodeJob, Processor
from codec.gpu_pack import fits
from codec.learneddecode import Setting
from codec.network import Network
from codec.pixelformat import PixelFormat
from tests.block_threads import BlockThreads
from tests.golden.make_codec2_vectors import FOLDER, digest
from tests.golden.test_codec2_golden import MANIFEST, context
from tests.lane_device import LaneDevice
from tests.unit.codec_networks import known, weight_file

CPU = Processor()
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]  # the lanes are compiled anew each time: half a minute


def network(rng: np.random.Generator, inputs: int, hidden: tuple[int, int] = (24, 16), components: int = 3) -> Network:
    """A random network whose sums stay below 2^24."""

    def layer(rows: int, columns: int) -> Any:
        return rng.integers(-30, 31, (rows, columns)).astype(np.int32)

    def line(size: int, least: int, most: int) -> Any:
        return rng.integers(least, most, size).astype(np.int32)

    first, second = hidden
    return Network(
        layer(first, inputs), line(first, -3000, 3000), line(first, 0, 256),
        layer(second, first), line(second, -3000, 3000), line(second, 0, 256),
        layer(3 * components, first + second), line(3 * components, -9000, 9000),
    )  # fmt: skip


def picture(rng: np.random.Generator, rows: int, columns: int, highest: int) -> Any:
    y, x = np.mgrid[:rows, :columns]
    smooth = (np.sin(y / 7) + np.cos(x / 9) + 2) / 4 * highest
    return np.clip(smooth + rng.normal(0, highest / 60 + 1, (rows, columns)), 0, highest).astype(np.int32)


def job(seed: int, rows: int, columns: int, highest: int, **more: Any) -> EncodeJob:
    """A tile to be coded. more: of the setting, and `previous` and `head` (bool), `hidden`, `components`."""
    rng = np.random.default_rng(seed)
    bits = highest.bit_length()
    k, sets, previous = more.get("k", bits), more.get("sets", 0), more.get("previous", False)
    inputs = 90 if previous else 74 if k < bits else 68
    taps = rng.integers(-300, 400, (sets, 44 if previous else 35)).astype(np.int32) // 8
    classes = (sets - 1) // more.get("directions", 1) - 1
    thresholds = np.sort(rng.integers(0, 500, max(0, classes))).astype(np.int64)
    net = network(rng, inputs, more.get("hidden", (24, 16)), more.get("components", 3))
    raw, states, rate = more.get("raw", 0), more.get("states", 16), more.get("rate", 0)
    setting = Setting(highest, k, raw, Predictors(thresholds, taps), net, states, rate)
    tile = picture(rng, rows, columns, highest)
    before = np.pad(np.clip(tile + rng.integers(-2, 3, tile.shape), 0, highest), 1, mode="edge").astype(np.int32)
    head = rng.integers(-(1 << 24), 1 << 24, net.w3.shape).astype(np.int32) if more.get("head", False) else None
    upper = tile >> k if k < bits else None
    return EncodeJob(tile, int(tile[0, 0]), upper, before if previous else None, setting, head)


def decoding(each: EncodeJob, words: Any) -> DecodeJob:
    return DecodeJob(each.tile.shape, words, each.anchor, each.upper, each.previous, each.setting, each.head)


JOBS = {
    "tiny": job(1, 1, 1, 1),
    "one row": job(2, 1, 50, 255, states=1),
    "narrow": job(3, 40, 3, 4095, states=2, sets=1),
    "raw": job(4, 33, 90, 1000, raw=2, sets=2, states=4),
    "raw to the top": job(5, 17, 5, 60000, raw=3, sets=8, states=1),
    "shortest period": job(6, 37, 71, 4095, sets=4),
    "longer": job(7, 37, 72, 4095, sets=15, states=8),
    "G": job(8, 48, 71, 4095, k=5, sets=6),
    "G and raw": job(9, 20, 30, 65535, k=12, raw=4, states=8),
    "before": job(10, 34, 40, 4095, previous=True, sets=3),
    "before and G": job(11, 18, 100, 255, previous=True, k=3, sets=0),
    "wider": job(12, 16, 40, 4095, hidden=(64, 48), components=4, sets=4),
    "learning": job(14, 33, 60, 4095, rate=9, sets=4),
    "learning fast": job(15, 20, 50, 255, rate=7, previous=True, states=2),
    "learning, default network": job(16, 40, 75, 4095, hidden=(64, 48), components=4, rate=10, directions=3, sets=16),
    "largest network": job(17, 17, 30, 4095, hidden=(96, 64), components=5, rate=10, k=4),
    "going on": job(18, 20, 60, 4095, rate=7, previous=True, head=True, hidden=(20, 12), sets=4),
    "many": job(13, 70, 130, 511, sets=6, rate=10),
}


@pytest.fixture(scope="module")
def lanes() -> Iterator[LaneDevice]:
    yield LaneDevice()


@pytest.mark.parametrize("name", JOBS)
def test_the_words_are_those_of_the_cpu_kernels(lanes: LaneDevice, name: str) -> None:
    each = JOBS[name]
    assert fits(each.setting.network)
    [words] = CPU.encode([each])
    assert np.array_equal(lanes.encode([each])[0], words)
    found = [device.decode([decoding(each, words)])[0] for device in (CPU, lanes)]
    assert all(tile is not None and np.array_equal(tile.samples, each.tile) for tile in found)
    assert np.array_equal(found[0].head, found[1].head)


@pytest.mark.parametrize("size", [2, 5, 256])
def test_batches_of_unlike_tiles(lanes: LaneDevice, size: int) -> None:
    small = [JOBS[name] for name in ("tiny", "one row", "narrow", "raw to the top", "G and raw")]
    jobs = [small[number % len(small)] for number in range(size)] if size > 5 else list(JOBS.values())[-size:]
    words = CPU.encode(jobs)
    assert all(map(np.array_equal, lanes.encode(jobs), words))
    back = [decoding(each, text) for each, text in zip(jobs, words, strict=True)]
    tiles, wanted = lanes.decode(back), CPU.decode(back)
    assert all(np.array_equal(tile.samples, each.tile) for tile, each in zip(tiles, jobs, strict=True))
    assert all(np.array_equal(tile.head, each.head) for tile, each in zip(tiles, wanted, strict=True))


@pytest.mark.parametrize("seed", range(40))
def test_random_tiles(lanes: LaneDevice, seed: int) -> None:
    rng = np.random.default_rng(1000 + seed)
    highest = int(rng.integers(1, 1 << int(rng.integers(1, 17))))
    bits = highest.bit_length()
    k = int(rng.integers(1, bits + 1))
    each = job(
        seed, int(rng.integers(1, 50)), int(rng.integers(1, 110)), highest, k=k,
        raw=int(rng.integers(0, min(4, k) + 1)), sets=int(rng.choice([0, 1, 2, 5, 9])),
        states=1 << int(rng.integers(0, 5)), rate=int(rng.choice([0, 7, 9, 10, 14])),
        previous=bool(rng.integers(0, 2)), components=int(rng.integers(1, 5)), head=bool(rng.integers(0, 2)),
        hidden=(int(rng.integers(5, 40)), int(rng.integers(5, 30))),
    )  # fmt: skip
    [words] = CPU.encode([each])
    assert np.array_equal(lanes.encode([each])[0], words)
    [tile], [wanted] = lanes.decode([decoding(each, words)]), CPU.decode([decoding(each, words)])
    assert tile is not None and wanted is not None
    assert np.array_equal(tile.samples, each.tile) and np.array_equal(tile.head, wanted.head)


def damaged(words: Any) -> Iterator[Any]:
    yield words[:-1]
    yield np.append(words, np.uint32(7))
    yield words[:3]
    yield words[:0]
    yield np.zeros_like(words)
    yield np.full_like(words, 0xFFFFFFFF)
    for place in (0, 1, words.size // 2, words.size - 1):
        other = words.copy()
        other[place] ^= 0x10000
        yield other


@pytest.mark.parametrize("name", ["raw", "G", "before"])
def test_a_damaged_stream_is_refused_where_the_cpu_kernels_refuse_it(lanes: LaneDevice, name: str) -> None:
    each = JOBS[name]
    for words in damaged(CPU.encode([each])[0]):
        [here], [there] = lanes.decode([decoding(each, words)]), CPU.decode([decoding(each, words)])
        assert (here is None) == (there is None)
        assert here is None or all(map(np.array_equal, here, there))


@pytest.mark.parametrize("threads", [16, 32, 64])
def test_the_kernels_bodies_run_by_the_threads_of_a_block(threads: int) -> None:
    block = BlockThreads(threads)
    jobs = [job(21, 17, 4, 1023, sets=4, raw=1, states=4), job(22, 3, 6, 255, k=5, previous=True, rate=8)]
    words = CPU.encode(jobs)
    assert all(map(np.array_equal, block.encode(jobs), words))
    tiles = block.decode([decoding(each, text) for each, text in zip(jobs, words, strict=True)])
    assert all(np.array_equal(tile.samples, each.tile) for tile, each in zip(tiles, jobs, strict=True))
    assert block.decode([decoding(jobs[0], words[0][:-1])]) == [None]


def test_what_the_kernels_have_no_room_for_is_known_beforehand() -> None:
    rng = np.random.default_rng(5)
    assert fits(network(rng, 90, (96, 64), 5))
    assert not fits(network(rng, 92, (16, 16), 3))
    assert not fits(network(rng, 90, (256, 128), 5))
    wide = network(rng, 68)
    assert not fits(replace(wide, w2=wide.w2 * 9))


def test_whole_frames_go_to_the_device_of_the_block_and_are_the_same_bytes(lanes: LaneDevice) -> None:
    fmt = PixelFormat(40, 37, 1, 16, 12, 11, False)
    first, second = (job(seed, 40, 37, 4095).tile.astype(np.uint16) for seed in (31, 32))
    with known(weight_file()):
        for previous in (None, first):
            alone = encode_frame(second, fmt, previous=previous, coders=("learned",))
            batcher = Batcher(lanes, CPU)
            with using(batcher):
                coded = encode_frame(second, fmt, previous=previous, coders=("learned",))
                frame = decode_frame(coded.blob, previous=previous)
            batcher.close()
            assert coded.blob == alone.blob and np.array_equal(frame.words, second)
            assert batcher.lost is None and batcher.tally.launches >= 2  # coded, proven, decoded


def test_golden_frames(lanes: LaneDevice) -> None:
    check_golden_frames(lanes)


def check_golden_frames(device: Device) -> None:
    """Every frozen bitstream of the learned coder gives its frozen words on the device."""
    batcher = Batcher(device, CPU)
    with known((FOLDER / "weights.bin").read_bytes()), using(batcher):
        for name in sorted(MANIFEST):
            frame = decode_frame((FOLDER / f"{name}.bin").read_bytes(), **context(name))  # type: ignore[arg-type]
            assert digest(frame.words) == MANIFEST[name]["sha256"], name
    batcher.close()
    assert batcher.lost is None and batcher.tally.elsewhere == 0
