"""The bodies of the device kernels, as they stand, run by real threads of one block on this processor.

Each thread of the block is a thread here, but only one runs at a time: at the barrier it hands on to the next. So every
`meet` of codec.gpu_kernel is really met by all, in another order of threads each time a block is run.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numba import njit

from codec import gpu_kernel
from codec.gpu_jobs import Decoded, DecodeJob, EncodeJob
from codec.gpu_kernel import PART_ROOM
from codec.gpu_lanes import LANE, LANES
from codec.gpu_pack import pack_batch
from codec.gpu_port import Port

DRIVERS = ("towards_law", "after_sample", "encode_block", "decode_block")  # everything that calls `meet`


class Baton:
    """Lets one thread of a block run at a time, and all of them from barrier to barrier."""

    def __init__(self, order: Sequence[int]) -> None:
        self.order = list(order)
        self.turns = {thread: threading.Semaphore(0) for thread in order}
        self.met = dict.fromkeys(order, 0)
        self.failed = threading.Event()
        self.local = threading.local()

    def run(self, body: Callable[[int], None]) -> None:
        """`body(thread)` of all threads."""
        workers = [threading.Thread(target=self._work, args=(thread, body)) for thread in self.order]
        for worker in workers:
            worker.start()
        self.turns[self.order[0]].release()
        for worker in workers:
            worker.join(300)
        assert not self.failed.is_set() and not any(worker.is_alive() for worker in workers)
        assert len(set(self.met.values())) == 1  # no thread met the others more often than they met it

    def meet(self) -> None:
        """The barrier."""
        self.met[self.local.thread] += 1
        self._hand_on()
        self._wait()

    def _work(self, thread: int, body: Callable[[int], None]) -> None:
        self.local.thread = thread
        self._wait()
        try:
            body(thread)
        except BaseException:
            self.failed.set()
            raise
        finally:
            self._hand_on()

    def _wait(self) -> None:
        self.turns[self.local.thread].acquire()
        LANE[0] = self.local.thread % LANES

    def _hand_on(self) -> None:
        place = self.order.index(self.local.thread)
        self.turns[self.order[(place + 1) % len(self.order)]].release()


class BlockThreads:
    """A codec.gpu.Device of one block of `threads` threads; the last tiles of a batch have to wait."""

    def __init__(self, threads: int = 2 * LANES) -> None:
        self.threads = threads
        self.baton: Baton | None = None
        port = Port(self._compile, {"meet": self._meet})
        self.bodies = {kind: port(getattr(gpu_kernel, f"{kind}_block")) for kind in ("encode", "decode")}

    def encode(self, jobs: Sequence[EncodeJob]) -> list[Any]:
        """See codec.gpu.Device."""
        batch = pack_batch(jobs)
        steps = [np.zeros(batch.steps, np.int32) for _ in range(2)]
        self._run("encode", batch, batch.samples, *steps, batch.words)
        return [batch.stream(number) for number in range(len(jobs))]

    def decode(self, jobs: Sequence[DecodeJob]) -> list[Any]:
        """See codec.gpu.Device."""
        batch = pack_batch(jobs)
        slow = self._run("decode", batch, batch.samples, batch.words)

        def decoded(number: int) -> Decoded:
            master = slow[number][batch.master(number)]
            return Decoded(batch.plane(number), jobs[number].setting.network.unpack_head(master))

        return [decoded(number) if batch.closed(number) else None for number in range(len(jobs))]

    @staticmethod
    def _compile(function: Any) -> Any:
        return function if function.__name__ in DRIVERS else njit(error_model="numpy")(function)

    def _meet(self) -> None:
        assert self.baton is not None
        self.baton.meet()

    def _run(self, kind: str, batch: Any, *arrays: Any) -> list[Any]:
        """Each tile's slow memory when it was done."""
        kept = []
        for tile, results in zip(batch.tiles, batch.results, strict=True):
            fast, slow = np.full(batch.fast, -7, np.int32), np.full(batch.late, -7, np.int32)
            counts, state = np.full(3, -7, np.int64), np.full(LANES, -7, np.int64)
            fixed = (tile, batch.pool, *arrays, results, fast, slow, np.full(PART_ROOM, np.nan), counts, state)
            self.baton = Baton(random.Random(int(tile[0])).sample(range(self.threads), self.threads))
            self.baton.run(lambda thread, fixed=fixed: self.bodies[kind](*fixed, thread, self.threads))
            kept.append(slow)
        return kept
