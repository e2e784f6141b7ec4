"""A GPU worker: a series' instances go together, and whatever dies, a CPU worker carries on from the rows."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from codec.gpu import Batcher, DeviceLost, NoDevice, current_device
from codec.gpu_jobs import Processor
from gateway.bootstrap import Gateway, build
from gateway.errors import Unavailable
from gateway.index_schema import instance
from gateway.instance import State
from gateway.jobs import MemoryQueue
from gateway.settings import Settings, load_settings
from palimpsest.supervisor import stages
from tests.fakes import part10, take_in
from tests.proving import InProcess
from tests.unit.codec_networks import known, weight_file
from worker import gpubatch, process, sweep
from worker.gpubatch import Provers, process_batch
from worker.leases import heartbeat
from worker.pipeline import carry_claimed, process_instance
from worker.tasks import Runtime, run_encode
from worker.verify import VerifyReport

ROOT = Path(__file__).resolve().parents[2]
GPU, CPU = "gpu-0-life1", "encode-life1"
OTHER_SERIES = "1.2.3.100.2"


class Fake(Processor):
    """A device that is this processor, one that is lost as soon as it is asked, or one that answers when let."""

    def __init__(self, *, lost: bool = False, answers: threading.Event | None = None) -> None:
        self.lost, self.answers = lost, answers

    def encode(self, jobs: Sequence[Any]) -> list[Any]:
        """See codec.gpu.Device."""
        if self.lost:
            raise DeviceLost("gone")
        if self.answers is not None:
            self.answers.wait(120)
        return super().encode(jobs)


@pytest.fixture(autouse=True, scope="module")
def weights() -> Iterator[object]:
    """The learned coder codes: it is the one that asks the device."""
    with known(weight_file()) as added:
        yield added


@pytest.fixture
def queue() -> MemoryQueue:
    return MemoryQueue()


def settings_for(home: Path, **more: Any) -> Settings:
    return load_settings(home=home, watermark_bytes=0, gpu_devices=(0,), **more)


@pytest.fixture
def gw(tmp_path: Path, queue: MemoryQueue) -> Iterator[Gateway]:
    gateway = build(settings_for(tmp_path), queue=queue)
    yield gateway
    gateway.close()


@pytest.fixture
def device() -> Iterator[Batcher]:
    batcher = Batcher(Fake(), Fake())
    yield batcher
    batcher.close()


def image(number: int, series: str = "1.2.3.100.1") -> bytes:
    return part10(pixels=bytes((number + n) % 256 for n in range(64)), series=series)


def states(gw: Gateway, ids: Sequence[int]) -> list[State]:
    return [gw.index.get(each).state for each in ids]


def batch(gw: Gateway, instance_id: int, device: Batcher) -> dict[int, str]:
    return process_batch(gw, InProcess(gw.keys), instance_id, GPU, device)


def test_waiting_instances_of_one_series_go_together(gw: Gateway, device: Batcher) -> None:
    ids = [take_in(gw, image(n)).row.id for n in range(5)]
    others = [take_in(gw, image(n, OTHER_SERIES)).row.id for n in range(2)]
    assert batch(gw, ids[2], device) == dict.fromkeys(ids, "ARCHIVED")
    assert device.tally.jobs >= 5 and device.lost is None
    assert states(gw, others) == [State.RECEIVED] * 2
    assert all(gw.index.get(each).attempts == 0 for each in others)
    assert all(batch(gw, each, device) == {} for each in ids)  # their own messages come later and find nothing to do


def test_every_instance_of_a_batch_is_coded_under_the_device(
    gw: Gateway, device: Batcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[object] = []

    def carried(*arguments: Any) -> str:
        seen.append(current_device())
        return carry_claimed(*arguments)

    monkeypatch.setattr(gpubatch, "carry_claimed", carried)
    ids = [take_in(gw, image(n)).row.id for n in range(3)]
    batch(gw, ids[0], device)
    assert seen == [device] * 3 and current_device() is None


@pytest.mark.parametrize(
    ("limits", "expected"),
    [({"gpu_batch": 3}, 3), ({"gpu_batch": 1}, 1), ({"gpu_batch_bytes": 1}, 1), ({"gpu_batch_bytes": 1500}, 2)],
)
def test_a_batch_is_bounded(
    tmp_path: Path, queue: MemoryQueue, device: Batcher, limits: dict[str, int], expected: int
) -> None:
    gateway = build(settings_for(tmp_path / "bounded", **limits), queue=queue)
    ids = [take_in(gateway, image(n)).row.id for n in range(5)]
    assert 500 < gateway.index.get(ids[0]).size < 750
    assert len(batch(gateway, ids[0], device)) == expected
    gateway.close()


def test_what_was_tried_before_goes_alone_and_takes_nobody_along(gw: Gateway, device: Batcher) -> None:
    ids = [take_in(gw, image(n)).row.id for n in range(4)]
    for each in ids[:2]:  # a worker died over these two
        gw.index.claim(each, "dead", 60.0)
    expire_leases(gw)
    assert set(batch(gw, ids[2], device)) == set(ids[2:])
    assert set(batch(gw, ids[0], device)) == {ids[0]}
    assert states(gw, ids) == [State.ARCHIVED, State.RECEIVED, State.ARCHIVED, State.ARCHIVED]


def test_instances_without_a_series_go_alone(gw: Gateway, device: Batcher) -> None:
    ids = [take_in(gw, image(n)).row.id for n in range(2)]
    with gw.index.write() as conn:
        conn.execute(sa.update(instance).values(series_uid=None))
    assert set(batch(gw, ids[0], device)) == {ids[0]}


def failing(bad: int) -> Callable[..., str]:
    def carried(gw: Gateway, prover: Any, row: Any, owner: str) -> str:
        if row.id == bad:
            raise Unavailable("archive-unavailable", "not today", retry_after=5)
        return carry_claimed(gw, prover, row, owner)

    return carried


def test_a_mate_that_fails_is_given_back_and_the_others_arrive(
    gw: Gateway, device: Batcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = [take_in(gw, image(n)).row.id for n in range(3)]
    monkeypatch.setattr(gpubatch, "carry_claimed", failing(ids[1]))
    assert set(batch(gw, ids[0], device)) == {ids[0], ids[2]}
    row = gw.index.get(ids[1])
    assert (row.state, row.lease_owner, row.last_error) == (State.RECEIVED, None, "archive-unavailable")


def test_the_error_of_the_instance_asked_for_is_raised_after_its_mates_are_done(
    gw: Gateway, device: Batcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = [take_in(gw, image(n)).row.id for n in range(3)]
    monkeypatch.setattr(gpubatch, "carry_claimed", failing(ids[0]))
    with pytest.raises(Unavailable):
        batch(gw, ids[0], device)
    assert states(gw, ids[1:]) == [State.ARCHIVED] * 2


class TimeLimit(Exception):
    """Stands for Celery's: raised in the main thread by a signal."""


def test_a_time_limit_gives_every_instance_back_even_if_their_threads_hang(
    gw: Gateway, device: Batcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else their heartbeats would keep the rows for as long as the process lives."""
    ids, end = [take_in(gw, image(n)).row.id for n in range(3)], threading.Event()
    hanging: list[int] = []

    def hangs(gw: Gateway, prover: Any, row: Any, owner: str) -> str:
        with heartbeat(lambda: gw.index.heartbeat(row.id, owner, 60.0), 1.0):
            hanging.append(row.id)
            if len(hanging) == 3:  # not before: the limit would be met while rows are still being claimed
                signal.setitimer(signal.ITIMER_REAL, 0.5)
            end.wait(60)
        return "late"

    def limit(*_: object) -> None:
        raise TimeLimit

    monkeypatch.setattr(gpubatch, "carry_claimed", hangs)
    before = signal.signal(signal.SIGALRM, limit)
    try:
        with pytest.raises(TimeLimit):
            batch(gw, ids[0], device)
        mates = [gw.index.get(each) for each in ids[1:]]
        assert device.stuck  # its process has to end: it has threads that hang
    finally:
        end.set()
        signal.signal(signal.SIGALRM, before)
    assert [(row.state, row.lease_owner, row.last_error) for row in mates] == [
        (State.RECEIVED, None, "internal-error")
    ] * 2


def test_a_lost_device_is_told_and_costs_no_image(gw: Gateway) -> None:
    lost = Batcher(Fake(lost=True), Processor())
    ids = [take_in(gw, image(n)).row.id for n in range(2)]
    assert set(batch(gw, ids[0], lost)) == set(ids)
    assert [alert.kind for alert in gw.index.alerts()] == ["device-lost"]
    lost.close()


def test_a_stuck_device_costs_no_image_and_ends_its_worker_once(gw: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it had is coded by CPU kernels after a bounded time; then the process leaves, for nothing else heals it."""
    answers, left = threading.Event(), list[str]()
    monkeypatch.setattr("worker.tasks.open_device", lambda number: Fake(answers=answers))
    monkeypatch.setattr("worker.tasks.PATIENCE", 0.3)
    runtime = Runtime(gw.settings, "gpu-0", device=0, leave=lambda: left.append("leave"))
    runtime._gateway = gw
    runtime._provers = InProcess(gw.keys)  # type: ignore[assignment]
    ids = [take_in(gw, image(n)).row.id for n in range(3)]
    assert run_encode(runtime, ids[0]) == {"state": "ARCHIVED"}
    assert left == ["leave"] and states(gw, ids) == [State.ARCHIVED] * 3
    assert all(row.lease_owner is None and row.attempts == 1 for row in map(gw.index.get, ids))
    [alert] = gw.index.alerts()
    assert alert.kind == "device-lost" and "no answer for 0.3 s" in alert.message and "ends to be" in alert.message
    runtime.batcher.close()  # does not wait for the thread that hangs
    answers.set()


# --- a CPU worker takes over ---


def expire_leases(gw: Gateway) -> None:
    with gw.index.write() as conn:
        leased = instance.c.lease_until.is_not(None)
        conn.execute(sa.update(instance).where(leased).values(lease_until=time.time() - 1))


def sweep_later(gw: Gateway) -> None:
    """A round of the sweep when what was sent was sent long ago."""
    with gw.index.write() as conn:
        conn.execute(sa.update(instance).values(queued_at=1.0))
    sweep.requeue_instances(gw)


def test_what_a_dead_gpu_worker_held_is_taken_by_a_cpu_worker_once_the_lease_is_over(
    gw: Gateway, queue: MemoryQueue, device: Batcher
) -> None:
    ids = [take_in(gw, image(n)).row.id for n in range(4)]
    row = gw.index.claim(ids[0], GPU, 60.0)
    assert row is not None
    held = gw.index.claim_mates(row, GPU, 60.0, limit=10, size_limit=1 << 20)
    assert [each.id for each in held] == ids[1:]  # and now it is killed: no heartbeat, no word
    while queue.pop("gpu") is not None:
        pass
    assert [process_instance(gw, InProcess(gw.keys), each, CPU) for each in ids] == ["not-claimed"] * 4
    sweep_later(gw)
    assert queue.depths()["encode"] == 0  # leased: nobody's business yet
    expire_leases(gw)
    sweep_later(gw)
    queue.handlers["palimpsest.encode"] = lambda each: process_instance(gw, InProcess(gw.keys), each, CPU)
    assert queue.run("encode") == 4
    assert states(gw, ids) == [State.ARCHIVED] * 4
    assert {gw.index.get(each).attempts for each in ids} == {2}


def test_a_gpu_worker_that_wakes_up_late_writes_nothing_over_the_other(gw: Gateway, device: Batcher) -> None:
    ids = [take_in(gw, image(n)).row.id for n in range(2)]
    row = gw.index.claim(ids[0], GPU, 60.0)
    assert row is not None
    mates = gw.index.claim_mates(row, GPU, 60.0, limit=10, size_limit=1 << 20)
    expire_leases(gw)
    for each in ids:
        assert process_instance(gw, InProcess(gw.keys), each, CPU) == "ARCHIVED"
    before = [gw.index.get(each) for each in ids]
    for late in (row, *mates):
        with pytest.raises(Exception, match="owns|transition|lease"):
            carry_claimed(gw, InProcess(gw.keys), late, GPU)
    assert [gw.index.get(each) for each in ids] == before


HANGS = """
import sys, time
from gateway.bootstrap import build
from gateway.jobs import MemoryQueue
from gateway.settings import load_settings
from worker import gpubatch

def hang(gw, prover, row, owner):
    sys.stdout.write(f"{row.id}\\n")  # one write: three threads do it
    sys.stdout.flush()
    time.sleep(600)

gpubatch.carry_claimed = hang
settings = load_settings(home=sys.argv[1], watermark_bytes=0, gpu_devices=(0,), lease_seconds=600.0)
gateway = build(settings, queue=MemoryQueue())
gpubatch.process_batch(gateway, None, int(sys.argv[2]), "gpu-0-life1", None)
"""


def test_a_gpu_worker_killed_in_the_middle_of_a_batch_leaves_nothing_behind_but_leases(gw: Gateway) -> None:
    ids = [take_in(gw, image(n)).row.id for n in range(3)]
    command = [sys.executable, "-c", HANGS, str(gw.settings.home), str(ids[0])]
    child = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    assert sorted(int(child.stdout.readline()) for _ in ids) == ids  # all three are being carried
    assert process_instance(gw, InProcess(gw.keys), ids[1], CPU) == "not-claimed"
    child.kill()
    child.wait(timeout=120)
    child.stdout.close()
    assert {gw.index.get(each).lease_owner for each in ids} == {GPU}
    expire_leases(gw)
    assert [process_instance(gw, InProcess(gw.keys), each, CPU) for each in ids] == ["ARCHIVED"] * 3


# --- messages, processes ---


def test_wake_ups_go_to_the_gpu_queue_and_repetitions_to_the_cpu_workers(gw: Gateway, queue: MemoryQueue) -> None:
    instance_id = take_in(gw, image(1)).row.id
    assert {name: depth for name, depth in queue.depths().items() if depth} == {"index": 1, "gpu": 1}
    sweep_later(gw)
    assert queue.pop("encode") == ("palimpsest.encode", (instance_id,)) == queue.pop("gpu")


def test_without_a_gpu_nothing_goes_to_its_queue(tmp_path: Path, queue: MemoryQueue) -> None:
    gateway = build(load_settings(home=tmp_path, watermark_bytes=0), queue=queue)
    take_in(gateway, image(1))
    assert (queue.depths()["encode"], queue.depths()["gpu"]) == (1, 0)
    gateway.close()


def test_the_encode_task_of_a_gpu_worker_takes_the_series(gw: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("worker.tasks.open_device", lambda number: Fake())
    runtime = Runtime(gw.settings, "gpu-0", device=0)
    runtime._gateway = gw
    runtime._provers = InProcess(gw.keys)  # type: ignore[assignment]
    ids = [take_in(gw, image(n)).row.id for n in range(3)]
    assert run_encode(runtime, ids[0]) == {"state": "ARCHIVED"}
    assert run_encode(runtime, ids[1]) == {"state": "not-claimed"}
    assert states(gw, ids) == [State.ARCHIVED] * 3
    runtime.batcher.close()


def test_every_device_has_one_process_of_its_own(tmp_path: Path) -> None:
    def commands(**more: Any) -> dict[str, tuple[str, ...]]:
        every = stages(load_settings(home=tmp_path, **more))
        return {spec.name: spec.argv for stage in every for spec in stage.children if "gpu" in spec.name}

    assert commands() == {}
    made = commands(gpu_devices="0, 2,2")
    assert list(made) == ["worker-gpu-0", "worker-gpu-2"]
    for number, argv in zip((0, 2), made.values(), strict=True):
        arguments = process.parse_arguments(argv[argv.index("--queues") :])
        assert (arguments.queues, arguments.concurrency, arguments.device) == (["gpu"], 1, number)


def test_one_process_a_device() -> None:
    with pytest.raises(SystemExit):
        process.parse_arguments(["--queues", "gpu", "--device", "0", "--concurrency", "2"])


def test_provers_are_lent_one_at_a_time_and_ended_when_a_check_breaks_off() -> None:
    class One:
        closed = 0

        def check(self, envelope: bytes, member: int | None = None) -> VerifyReport:
            if not envelope:
                raise Unavailable("verifier-start")
            return VerifyReport(True)

        def close(self) -> None:
            self.closed += 1

    made: list[One] = []

    def make() -> Any:
        made.append(One())
        return made[-1]

    provers = Provers(make, 2)
    with pytest.raises(Unavailable):
        provers.check(b"")
    assert [one.closed for one in made] == [1, 0]
    assert all(provers.check(b"x").ok for _ in range(5))
    provers.close()
    assert [one.closed for one in made] == [2, 1]


def test_a_worker_for_a_device_that_is_not_there_says_so_and_does_not_start(tmp_path: Path) -> None:
    code = "import worker.process as p; p.check_device(99)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=240)
    assert done.returncode == 1
    assert "99" in done.stderr and "CPU workers" in done.stderr and "Traceback" not in done.stderr


def test_a_worker_whose_device_cannot_take_its_kernels_ends_and_says_why(
    gw: Gateway, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuses(number: int) -> Any:
        raise NoDevice(f"CUDA device {number} cannot be used: too new")

    left: list[str] = []
    monkeypatch.setattr("worker.tasks.open_device", refuses)
    assert not Runtime(gw.settings, "gpu-0", device=0, leave=lambda: left.append("leave")).device_ready()
    assert left == ["leave"] and "CUDA device 0 cannot be used: too new" in caplog.text
    monkeypatch.setattr("worker.tasks.open_device", lambda number: Fake())
    runtime = Runtime(gw.settings, "gpu-0", device=0, leave=lambda: left.append("again"))
    assert runtime.device_ready() and left == ["leave"]
    runtime.batcher.close()


def test_no_torch_and_no_cuda_is_loaded_by_a_worker_that_did_not_ask() -> None:
    code = (
        "import sys, worker.tasks, worker.app, codec.frame, codec.gpu\n"
        "print(sorted(m for m in sys.modules if m.split('.')[0] in ('torch', 'triton', 'cuda') or m == 'numba.cuda'))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=240)
    assert (done.returncode, done.stdout.strip()) == (0, "[]"), done.stderr
