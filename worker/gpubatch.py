"""What a GPU worker does with a message: the instance named and its waiting series mates, all at once.

Each instance is carried by the same steps as anywhere (`worker.pipeline`), in a thread of its own, under its own lease;
only the coder's tiles meet, in the device's batcher. So a device adds no state: whatever dies, the rows say what is
left, and a CPU worker makes the same bytes.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from queue import SimpleQueue

from codec.gpu import Batcher, using
from gateway.bootstrap import Gateway
from gateway.errors import PalimpsestError
from gateway.index_rows import InstanceRow
from worker.grouping import released_on_failure
from worker.pipeline import Prover, carry_claimed, record_failure
from worker.verify import Verifier, VerifyReport

__all__ = ["Provers", "process_batch"]

log = logging.getLogger(__name__)

DEVICE_LOST = "device-lost"
#: seconds that an instance waits for its tiles: a full launch takes a few
PATIENCE = 120.0


class Provers:
    """Several proving processes for several threads: who has something to prove is lent one."""

    def __init__(self, make: Callable[[], Verifier], count: int) -> None:
        self._all = [make() for _ in range(count)]
        self._free: SimpleQueue[Verifier] = SimpleQueue()
        for verifier in self._all:
            self._free.put(verifier)

    def check(self, envelope: bytes, member: int | None = None) -> VerifyReport:
        """See `worker.verify.Verifier.check`; waits for a free one."""
        with self._lent() as verifier:
            return verifier.check(envelope, member)

    def close(self) -> None:
        """End all processes; they start again when they are asked."""
        for verifier in self._all:
            verifier.close()

    @contextmanager
    def _lent(self) -> Iterator[Verifier]:
        verifier = self._free.get()
        try:
            yield verifier
        except BaseException:
            verifier.close()  # an answer still in the pipe would be taken for the next object's
            raise
        finally:
            self._free.put(verifier)


def process_batch(gw: Gateway, provers: Prover, instance_id: int, owner: str, device: Batcher) -> dict[int, str]:
    """Carry one instance, and what waits of its series with it, as far as ARCHIVED; instance id -> its state.

    Empty if the instance is another's, finished or not due. What goes wrong with a mate is recorded here; the error of
    the instance that was asked for is raised after all are done, for the caller to record.
    """
    settings = gw.settings
    row = gw.index.claim(instance_id, owner, settings.lease_seconds)
    if row is None:
        return {}
    rows = [row, *_mates(gw, row, owner)]
    # a time limit is raised here, in the main thread: those of the instances may hang, and must hold no row then
    with (
        released_on_failure(gw, rows[1:], owner),
        _given_up_on_failure(device),
        ThreadPoolExecutor(len(rows), "instance") as pool,
    ):
        futures = [pool.submit(_carry, gw, provers, each, owner, device) for each in rows]
    _tell_if_lost(gw, device)
    for mate, future in zip(rows[1:], futures[1:], strict=True):
        _record(gw, mate, owner, future)
    first = futures[0].result()  # raises what its thread raised
    states = {each.id: future.result() for each, future in zip(rows, futures, strict=True) if not future.exception()}
    return {row.id: first, **states}


def _mates(gw: Gateway, row: InstanceRow, owner: str) -> Sequence[InstanceRow]:
    """Waiting instances of the same series, leased; none for what was tried before: it goes alone."""
    settings = gw.settings
    room = settings.gpu_batch_bytes - row.size
    if row.attempts > 1 or row.series_uid is None or settings.gpu_batch == 1 or room <= 0:
        return ()
    return gw.index.claim_mates(row, owner, settings.lease_seconds, limit=settings.gpu_batch - 1, size_limit=room)


@contextmanager
def _given_up_on_failure(device: Batcher) -> Iterator[None]:
    """Threads that the end of a batch leaves behind are no longer served: their process must end (`Batcher.stuck`)."""
    try:
        yield
    except BaseException:
        device.give_up("a batch was ended before its time")
        raise


def _carry(gw: Gateway, provers: Prover, row: InstanceRow, owner: str, device: Batcher) -> str:
    with using(device):
        return carry_claimed(gw, provers, row, owner)


def _record(gw: Gateway, row: InstanceRow, owner: str, future: Future[str]) -> None:
    """Give a mate's row back as its error's class says; without a database its lease runs out by itself."""
    error = future.exception()
    if error is None:
        return
    try:
        record_failure(gw, row.id, owner, error)
    except PalimpsestError as second:
        log.warning("a failure could not be recorded", extra={"reason": second.reason})


def _tell_if_lost(gw: Gateway, device: Batcher) -> None:
    """A lost device costs speed, no image: a person should know."""
    if device.lost is not None:
        then = "ends to be started again" if device.stuck else "goes on with CPU kernels until it is started again"
        message = f"a GPU worker lost its device ({device.lost}) and {then}"
        gw.index.alert_raise(DEVICE_LOST, "gpu worker", message, "warning")
