"""One device for many threads: what waits together goes together, order is kept, a lost device costs no result."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest

from codec.gpu import Batcher, DeviceLost, current_device, using


class Doubling:
    """A device for numbers. `gate`: work waits for it; `broken`: the launch at which it dies, counted from 1."""

    def __init__(self, broken: int = 0, error: type[Exception] = DeviceLost) -> None:
        self.gate, self.begun = threading.Event(), threading.Event()
        self.gate.set()
        self.broken, self.error = broken, error
        self.seen: list[list[int]] = []

    def encode(self, jobs: Sequence[int]) -> list[int]:
        """2 n of each n."""
        self.seen.append(list(jobs))
        self.begun.set()
        assert self.gate.wait(120)
        if len(self.seen) == self.broken:
            raise self.error("gone")
        return [2 * job for job in jobs]

    def decode(self, jobs: Sequence[int]) -> list[int]:
        """n // 2."""
        return [job // 2 for job in jobs]


def test_what_comes_while_the_device_is_busy_goes_together_and_everybody_gets_his_own() -> None:
    device = Doubling()
    batcher = Batcher(device, Doubling(), pause=0)
    device.gate.clear()
    with ThreadPoolExecutor(9) as pool:
        first = pool.submit(batcher.encode, [1])
        assert device.begun.wait(120)
        rest = [pool.submit(batcher.encode, [10 * n, 10 * n + 1]) for n in range(1, 9)]
        while sum(len(waiting.jobs) for waiting in batcher._queues["encode"]) < 16:
            pass
        device.gate.set()
        assert first.result() == [2]
        assert [future.result() for future in rest] == [[20 * n, 20 * n + 2] for n in range(1, 9)]
    batcher.close()
    assert len(device.seen) == 2 and len(device.seen[1]) == 16
    assert (batcher.tally.launches, batcher.tally.jobs, batcher.tally.largest) == (2, 17, 16)


def test_no_launch_is_larger_than_was_allowed_unless_one_caller_asks_for_more() -> None:
    device = Doubling()
    batcher = Batcher(device, Doubling(), most=3, pause=0)
    device.gate.clear()
    with ThreadPoolExecutor(5) as pool:
        futures = [pool.submit(batcher.encode, [0])]
        assert device.begun.wait(120)
        futures += [pool.submit(batcher.encode, [n, n]) for n in range(3)]
        futures.append(pool.submit(batcher.encode, list(range(7))))
        while len(batcher._queues["encode"]) < 4:
            pass
        device.gate.set()
        assert sorted(len(future.result()) for future in futures) == [1, 2, 2, 2, 7]
    batcher.close()
    assert max(len(jobs) for jobs in device.seen if len(jobs) != 7) <= 3


def test_encode_and_decode_do_not_mix() -> None:
    batcher = Batcher(Doubling(), Doubling())
    assert batcher.decode(batcher.encode([3, 4])) == [3, 4]
    assert batcher.encode([]) == []
    batcher.close()


@pytest.mark.parametrize("broken", [1, 2])
def test_a_lost_device_is_replaced_by_the_processor_for_good(broken: int) -> None:
    device, spare = Doubling(broken), Doubling()
    batcher = Batcher(device, spare)
    assert [batcher.encode([n]) for n in range(4)] == [[0], [2], [4], [6]]
    batcher.close()
    assert isinstance(batcher.lost, DeviceLost)
    assert len(device.seen) == broken and len(spare.seen) == 5 - broken
    assert batcher.tally.elsewhere == 5 - broken


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_nobody_waits_for_ever_when_the_devices_thread_dies_of_something_unforeseen() -> None:
    batcher = Batcher(Doubling(1, ZeroDivisionError), Doubling())
    assert batcher.encode([5]) == [10]
    assert batcher.encode([6]) == [12]
    assert batcher.lost is not None
    batcher.close()


def test_a_closed_batcher_refuses() -> None:
    batcher = Batcher(Doubling(), Doubling())
    batcher.close()
    with pytest.raises(DeviceLost):
        batcher.encode([1])


def test_the_device_in_use_is_that_of_the_block_and_of_the_thread() -> None:
    device = Doubling()
    seen: list[object] = []
    assert current_device() is None
    with using(device):
        assert current_device() is device
        other = threading.Thread(target=lambda: seen.append(current_device()))
        other.start()
        other.join()
        with using(None):
            assert current_device() is None
    assert current_device() is None and seen == [None]


def test_a_stuck_device_is_given_up_and_its_late_answer_counts_for_nothing() -> None:
    device, elsewhere = Doubling(), Doubling()
    batcher = Batcher(device, elsewhere, pause=0)
    device.gate.clear()
    with ThreadPoolExecutor(3) as pool:  # one is running, two wait behind it: all are served
        first = pool.submit(batcher.encode, [1])
        assert device.begun.wait(120)
        batcher._patience = 0.2  # from now on: a busy machine may take longer to begin
        rest = [pool.submit(batcher.encode, [n]) for n in (2, 3)]
        assert [future.result(120) for future in (first, *rest)] == [[2], [4], [6]]
    assert batcher.stuck and str(batcher.lost) == "the device gave no answer for 0.2 s"
    assert sorted(elsewhere.seen) == [[1], [2], [3]] and len(device.seen) == 1
    batcher.close()  # waits for nothing
    assert batcher._thread.is_alive()
    device.gate.set()
    batcher._thread.join(120)
    assert batcher.stuck and batcher.lost is not None and batcher.tally.launches == 0


def test_who_waits_is_served_when_the_device_is_given_up() -> None:
    device, elsewhere = Doubling(), Doubling()
    batcher = Batcher(device, elsewhere, pause=0)
    device.gate.clear()
    with ThreadPoolExecutor(1) as pool:
        waits = pool.submit(batcher.encode, [5])
        assert device.begun.wait(120)
        batcher.give_up("enough")
        assert waits.result(120) == [10] and elsewhere.seen == [[5]]
    assert batcher.encode([7]) == [14]
    device.gate.set()
