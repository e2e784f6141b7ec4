"""What every JobQueue does: Celery on a real Redis-protocol server, and its in-memory twin."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from gateway.broker import server_command
from gateway.errors import IntegrityError, Unavailable
from gateway.jobs import ENCODE_TASK, INDEX_TASK, RETRIEVE_TASK, CeleryQueue, JobQueue, MemoryQueue, celery_app
from gateway.settings import Settings, load_settings

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
ANSWER_SECONDS = 120.0  # a worker starts in between, on a busy machine; says nothing about speed


@dataclass
class Bench:
    """A queue, a way to let its workers run, and what they did so far."""

    queue: JobQueue
    serve: Callable[[], None]
    done: Callable[[int], list[str]]
    stop_broker: Callable[[], None]
    children: list[subprocess.Popen[bytes]] = field(default_factory=list)


def until(condition: Callable[[], bool], seconds: float = ANSWER_SECONDS) -> None:
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.02)


def answers(path: Path) -> bool:
    """Whether the broker takes connections: its socket has a name before it listens."""
    with socket.socket(socket.AF_UNIX) as probe:
        return probe.connect_ex(str(path)) == 0


@pytest.fixture(params=["celery", "memory"])
def bench(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Bench]:
    if request.param == "memory":
        yield memory_bench()
        return
    made = celery_bench(tmp_path)
    yield made
    made.queue.close()
    for child in made.children:
        child.kill()
        child.wait()


def memory_bench() -> Bench:
    queue, trace = MemoryQueue(), []

    def retrieve(number: int, kind: str) -> dict[str, object]:
        if kind == "raise":
            raise ValueError("a secret")
        return {"number": number, "kind": kind}

    def note(*args: int | str) -> None:
        trace.append(" ".join(map(str, args)))

    def serve() -> None:
        queue.handlers |= {INDEX_TASK: note, ENCODE_TASK: note, RETRIEVE_TASK: retrieve}

    def done(_count: int) -> list[str]:
        queue.run()
        return trace

    return Bench(queue, serve, done, lambda: setattr(queue, "down", True))


def celery_bench(tmp_path: Path) -> Bench:
    settings = load_settings(home=tmp_path)
    trace = tmp_path / "trace"
    server = subprocess.Popen(server_command(settings), stdout=subprocess.DEVNULL)
    children = [server]
    queue = CeleryQueue(settings)
    until(lambda: answers(settings.redis_socket))

    def serve() -> None:
        command = [sys.executable, str(HERE / "queue_worker.py"), str(tmp_path), str(trace)]
        children.append(subprocess.Popen(command, cwd=ROOT, env=child_env(settings), stderr=subprocess.DEVNULL))

    def done(count: int) -> list[str]:
        until(lambda: trace.exists() and len(trace.read_text().splitlines()) >= count)
        return trace.read_text().splitlines()

    def stop_broker() -> None:
        server.kill()
        server.wait()

    return Bench(queue, serve, done, stop_broker, children)


def child_env(settings: Settings) -> dict[str, str]:
    from gateway.settings import python_environment

    return python_environment(ROOT) | {"PALIMPSEST_HOME": str(settings.home)}


def test_the_most_urgent_goes_first_then_the_oldest(bench: Bench) -> None:
    for number, priority in ((1, 9), (2, 5), (3, 0), (4, 5), (5, 0)):
        bench.queue.send(ENCODE_TASK, [number], "encode", priority)
    assert bench.queue.depths()["encode"] == 5
    bench.serve()
    assert bench.done(5) == ["3", "5", "2", "4", "1"]
    assert bench.queue.depths() == {"index": 0, "encode": 0, "forward": 0, "retrieve": 0, "gpu": 0}


def test_call_gives_the_answer(bench: Bench) -> None:
    bench.serve()
    answer = bench.queue.call(RETRIEVE_TASK, [7, "original"], "retrieve", ANSWER_SECONDS)
    assert answer == {"number": 7, "kind": "original"}


def test_calls_from_several_threads_get_their_own_answers(bench: Bench) -> None:
    bench.serve()
    answers: dict[int, object] = {}

    def ask(number: int) -> None:
        answers[number] = bench.queue.call(RETRIEVE_TASK, [number, "x"], "retrieve", ANSWER_SECONDS)["number"]

    threads = [threading.Thread(target=ask, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == {n: n for n in range(8)}


def test_a_task_that_raises_is_unavailable_and_says_nothing(bench: Bench) -> None:
    bench.serve()
    with pytest.raises(Unavailable) as caught:
        bench.queue.call(RETRIEVE_TASK, [1, "raise"], "retrieve", ANSWER_SECONDS)
    assert caught.value.reason == "task-failed"
    assert "secret" not in str(caught.value.problem())


def test_a_call_that_nobody_answers_ends(bench: Bench) -> None:
    with pytest.raises(Unavailable) as caught:
        bench.queue.call(RETRIEVE_TASK, [1, "x"], "retrieve", 0.2)
    assert caught.value.reason == "task-timeout"


def test_a_broker_that_is_down_is_unavailable(bench: Bench) -> None:
    bench.queue.ping()
    bench.stop_broker()
    for act in (
        lambda: bench.queue.send(INDEX_TASK, [1], "index"),
        lambda: bench.queue.send(INDEX_TASK, [1], "index"),
        lambda: bench.queue.call(RETRIEVE_TASK, [1, "x"], "retrieve", 1),
        bench.queue.ping,
        bench.queue.depths,
    ):
        with pytest.raises(Unavailable) as caught:
            act()
        assert caught.value.reason == "queue-unavailable"


@pytest.mark.parametrize("args", [[1.5], [None], [{"patient": "x"}], ["x" * 513], [b"pixels"]])
def test_messages_carry_ids_and_words_only(bench: Bench, args: list[object]) -> None:
    with pytest.raises(IntegrityError):
        bench.queue.send(ENCODE_TASK, args, "encode")  # type: ignore[arg-type]


def test_unknown_queues_are_refused(bench: Bench) -> None:
    with pytest.raises(IntegrityError):
        bench.queue.send(ENCODE_TASK, [1], "elsewhere")


def test_a_killed_broker_starts_empty_and_the_queue_goes_on(tmp_path: Path) -> None:
    """It keeps nothing on disk, where a torn file would keep it down: rows are the truth, the sweep sends again."""
    made = celery_bench(tmp_path)
    settings = load_settings(home=tmp_path)
    try:
        made.queue.send(ENCODE_TASK, [1], "encode")
        made.stop_broker()
        settings.redis_socket.unlink()
        made.children.append(subprocess.Popen(server_command(settings), stdout=subprocess.DEVNULL))
        until(lambda: answers(settings.redis_socket))
        again = CeleryQueue(settings)
        assert again.depths()["encode"] == 0
        again.send(ENCODE_TASK, [1], "encode")
        assert again.depths()["encode"] == 1
        again.close()
        assert not list(settings.local_run_dir.glob("*.aof*")) and not list(settings.local_run_dir.glob("*.rdb"))
    finally:
        made.queue.close()
        for child in made.children:
            child.kill()
            child.wait()


def test_celery_is_set_up_for_loss_and_repetition(tmp_path: Path) -> None:
    settings = load_settings(home=tmp_path)
    conf = celery_app(settings).conf
    assert conf.task_acks_late and conf.task_reject_on_worker_lost
    assert conf.accept_content == ["json"] and conf.task_serializer == "json"
    assert conf.worker_prefetch_multiplier == 1
    options = conf.broker_transport_options
    assert options["queue_order_strategy"] == "priority" and options["priority_steps"] == list(range(10))
    assert options["visibility_timeout"] > settings.object_time_limit_seconds * 1.2
    assert options["unacked_restore_interval"] == 2 and options["unacked_restore_throttle"] == 1
