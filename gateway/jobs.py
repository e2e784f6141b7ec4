"""Messages to the workers: the queue is a wake-up, the database row is the truth.

A message carries a task name and ids or machine words, nothing else. `CeleryQueue` is Celery on a Redis-protocol
server; `MemoryQueue` is its twin for tests; both pass tests/contract/test_job_queue.py. Celery on Redis can lose a
message when a worker is killed (kombu issue 305), and deliver one twice: tasks are idempotent, and the sweep re-sends
what is overdue.
"""

from __future__ import annotations

import heapq
import itertools
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Protocol

from celery import Celery
from kombu.entity import Exchange, Queue
from kombu.exceptions import KombuError
from redis.exceptions import RedisError

from gateway.errors import IntegrityError, PalimpsestError, Unavailable
from gateway.index_intake import ENCODE_TASK, FORWARD_TASK, INDEX_TASK, QUEUE_OF, RETRIEVE_TASK
from gateway.redis_link import ANSWER_SECONDS, CONNECT_SECONDS, RedisLink
from gateway.settings import Settings

if TYPE_CHECKING:
    from gateway.index_forward import Forwarding

__all__ = [
    "ENCODE_TASK", "FORWARD_TASK", "GPU_QUEUE", "INDEX_TASK", "QUEUES", "QUEUE_OF", "RETRIEVE_TASK",
    "CeleryQueue", "JobQueue", "MemoryQueue", "Message", "celery_app", "flush_outbox",
]  # fmt: skip

GPU_QUEUE: Final = "gpu"  # encode messages, where there is a GPU worker (settings.encode_queue)
QUEUES: Final = (*dict.fromkeys(QUEUE_OF.values()), GPU_QUEUE)
PRIORITIES: Final = tuple(range(10))  # 0 most urgent
RESULT_SECONDS: Final = 300
DOWN_SECONDS: Final = 1.0
FLUSH_BATCH: Final = 200
_FIRST_POLL: Final = 0.005
_LAST_POLL: Final = 0.05

Args = Sequence[int | str]


@dataclass(frozen=True, slots=True)
class Message:
    """One task to be done. args: ids and machine words; priority: 0 (most urgent) to 9."""

    task: str
    args: tuple[int | str, ...]
    queue: str
    priority: int = 5


class JobQueue(Protocol):
    """Sending tasks by name. Every method raises Unavailable ``queue-unavailable`` while the broker is away."""

    def send(self, task: str, args: Args, queue: str, priority: int = 5) -> None:
        """Hand a message over; it may be lost or delivered twice, so the database must know of the work as well."""

    def send_many(self, messages: Sequence[Message]) -> None:
        """Hand several over in one go; if it raises, some of them may have gone out."""

    def call(self, task: str, args: Args, queue: str, timeout: float, priority: int = 0) -> dict[str, Any]:
        """Send and wait for the answer, a JSON object. Raises Unavailable: ``task-timeout``, ``task-failed``."""

    def depths(self) -> Mapping[str, int]:
        """Messages waiting, by queue; those being worked on are not counted."""

    def ping(self) -> None:
        """Raise Unavailable unless the broker answers."""

    def close(self) -> None:
        """Close connections."""


def celery_app(settings: Settings) -> Celery:
    """A Celery application without tasks, connected lazily; the worker registers its tasks on it by name."""
    link = RedisLink.of(settings)
    app = Celery("palimpsest", set_as_current=False)
    app.conf.update(
        **link.celery_settings(),
        broker_transport_options=_transport_options(settings) | link.transport_options,
        result_backend_transport_options={"global_keyprefix": "palimpsest:"} | link.transport_options,
        redis_socket_connect_timeout=CONNECT_SECONDS,
        redis_socket_timeout=ANSWER_SECONDS,
        broker_connection_timeout=CONNECT_SECONDS,
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,  # a worker outlives any outage of its broker
        task_publish_retry=False,  # a door must not wait for the broker: the outbox keeps the message
        task_queues=_queues(),
        task_default_queue="encode",
        task_create_missing_queues=False,
        task_default_priority=5,
        task_serializer="json",
        result_serializer="json",
        accept_content=["json"],
        result_expires=RESULT_SECONDS,
        task_acks_late=True,
        task_reject_on_worker_lost=True,
        worker_prefetch_multiplier=1,
        worker_send_task_events=settings.flower,  # task names and ids, for Flower alone
        worker_hijack_root_logger=False,
        worker_redirect_stdouts=False,
        worker_enable_remote_control=False,
        enable_utc=True,
    )
    return app


def _queues() -> list[Queue]:
    return [
        Queue(name, Exchange(name, type="direct"), routing_key=name)  # type: ignore[no-untyped-call]
        for name in QUEUES
    ]


def _transport_options(settings: Settings) -> dict[str, Any]:
    """kombu's Redis transport: see its module docstring for each name."""
    return {
        "visibility_timeout": settings.visibility_timeout_seconds,
        "unacked_restore_interval": 2,  # seconds; with throttle 1 this is the real period, the default is 10 * 10
        "unacked_restore_throttle": 1,
        "priority_steps": list(PRIORITIES),
        "queue_order_strategy": "priority",
        "socket_connect_timeout": CONNECT_SECONDS,
        "socket_timeout": ANSWER_SECONDS,
        "socket_keepalive": True,
        "health_check_interval": 25,
        "retry_on_timeout": False,
        "max_retries": 0,  # of publishing; consuming has its own, endless, retry
    }


class CeleryQueue:
    """Celery's client side. Safe in threads; after a fork build a new one."""

    def __init__(self, settings: Settings) -> None:
        self._app = celery_app(settings)
        self._down_until = 0.0

    def send(self, task: str, args: Args, queue: str, priority: int = 5) -> None:
        """See JobQueue."""
        self.send_many([Message(task, tuple(args), queue, priority)])

    def send_many(self, messages: Sequence[Message]) -> None:
        """See JobQueue. What `send_task` does, without its signals and events, and with one round trip for all."""
        for message in messages:
            _check(message.args, message.queue)
        if time.monotonic() < self._down_until:  # a door must not pay the connection timeout for every object
            raise Unavailable("queue-unavailable", "the job queue did not answer a moment ago")
        try:
            with _broker_errors(), self._app.producer_pool.acquire(block=True) as producer, producer.batch():
                for message in messages:
                    task = self._app.amqp.as_task_v2(
                        str(uuid.uuid4()),
                        message.task,
                        list(message.args),
                        {},
                        ignore_result=True,
                        argsrepr=str(message.args),
                        kwargsrepr="{}",
                    )
                    producer.publish(
                        task.body, headers=task.headers, exchange="", routing_key=message.queue,
                        priority=message.priority, serializer="json", **task.properties,
                    )  # fmt: skip
        except Unavailable:
            self._down_until = time.monotonic() + DOWN_SECONDS
            raise

    def call(self, task: str, args: Args, queue: str, timeout: float, priority: int = 0) -> dict[str, Any]:
        """See JobQueue. Polls the result key: Celery's own wait shares one pub/sub connection between threads."""
        _check(args, queue)
        deadline = time.monotonic() + timeout
        with _broker_errors():
            sent = self._app.send_task(
                task,
                args=list(args),
                queue=queue,
                priority=priority,
                expires=max(1, int(timeout)),  # nobody waits for it afterwards
                ignore_result=True,  # for this side only, so that no subscription is made;
                headers={"ignore_result": False},  # the worker does store the result
            )
            for pause in _pauses():
                answer = self._app.backend.get_task_meta(sent.id, cache=False)
                if answer["status"] in ("SUCCESS", "FAILURE", "REVOKED"):
                    self._app.backend.forget(sent.id)
                    return _answer(answer)
                if time.monotonic() >= deadline:
                    break
                time.sleep(min(pause, max(0.0, deadline - time.monotonic())))
        raise Unavailable("task-timeout", "no worker answered in time", retry_after=5)

    def depths(self) -> dict[str, int]:
        """See JobQueue."""
        with _broker_errors(), self._app.connection_for_read() as connection:
            client = connection.default_channel.client
            separator = "\x06\x16"  # kombu.transport.redis.Channel.sep
            keys = {q: [f"{q}{separator}{p}" if p else q for p in PRIORITIES] for q in QUEUES}
            return {queue: sum(int(client.llen(key)) for key in names) for queue, names in keys.items()}

    def ping(self) -> None:
        """See JobQueue."""
        with _broker_errors(), self._app.connection_for_read() as connection:
            connection.default_channel.client.ping()

    def close(self) -> None:
        """See JobQueue."""
        self._app.close()


class MemoryQueue:
    """The same in one process: messages wait until `run` (or `call`) finds their handler in `handlers`."""

    def __init__(self) -> None:
        self.handlers: dict[str, Callable[..., Any]] = {}
        self.down = False  # set by tests: every method then raises Unavailable
        self._waiting: dict[str, list[tuple[int, int, str, tuple[int | str, ...]]]] = {name: [] for name in QUEUES}
        self._order = itertools.count()

    def send(self, task: str, args: Args, queue: str, priority: int = 5) -> None:
        """See JobQueue."""
        _check(args, queue)
        self.ping()
        heapq.heappush(self._waiting[queue], (priority, next(self._order), task, tuple(args)))

    def send_many(self, messages: Sequence[Message]) -> None:
        """See JobQueue."""
        for message in messages:
            self.send(message.task, message.args, message.queue, message.priority)

    def call(self, task: str, args: Args, queue: str, timeout: float, priority: int = 0) -> dict[str, Any]:
        """See JobQueue; the handler runs at once, in the caller's thread."""
        _check(args, queue)
        self.ping()
        handler = self.handlers.get(task)
        if handler is None:
            raise Unavailable("task-timeout", "no worker answered in time", retry_after=5)
        try:
            return dict(handler(*args))
        except (PalimpsestError, ValueError, TypeError, KeyError, OSError):
            raise Unavailable("task-failed", "the worker could not answer", retry_after=5) from None

    def depths(self) -> dict[str, int]:
        """See JobQueue."""
        self.ping()
        return {queue: len(waiting) for queue, waiting in self._waiting.items()}

    def ping(self) -> None:
        """See JobQueue."""
        if self.down:
            raise Unavailable("queue-unavailable", "the job queue does not answer")

    def close(self) -> None:
        """See JobQueue."""

    def pop(self, queue: str) -> tuple[str, tuple[int | str, ...]] | None:
        """The most urgent message of a queue, oldest first among equals, or None."""
        if not self._waiting[queue]:
            return None
        _, _, task, args = heapq.heappop(self._waiting[queue])
        return task, args

    def run(self, *queues: str) -> int:
        """Work off these queues (all, if none is named) until they are empty; returns how many messages."""
        done, progress = 0, True
        while progress:
            progress = False
            for queue in queues or QUEUES:
                if (message := self.pop(queue)) is not None:
                    self.handlers[message[0]](*message[1])
                    done, progress = done + 1, True
        return done


def flush_outbox(
    index: Forwarding,
    queue: JobQueue,
    limit: int = FLUSH_BATCH,
    instances: Sequence[int] | None = None,
    encode_queue: str = QUEUE_OF[ENCODE_TASK],
) -> int:
    """Send what the outbox holds (for these instances, if given), most urgent first; returns how many.

    encode_queue: where encodes go (settings.encode_queue); the row names the task's own queue and knows of no GPU.
    A crash, or an error, between sending and forgetting sends twice, which idempotent tasks allow. Raises Unavailable.
    """
    due = index.outbox_due(limit, instances)
    if due:
        queue.send_many(
            [
                Message(each.task, each.args, encode_queue if each.task == ENCODE_TASK else each.queue, each.priority)
                for each in due
            ]
        )
        index.outbox_sent([each.id for each in due])
    return len(due)


def _check(args: Args, queue: str) -> None:
    if queue not in QUEUES or not all(isinstance(a, int) or (isinstance(a, str) and len(a) <= 512) for a in args):
        raise IntegrityError("bad-message", "a message goes to a known queue and carries ids and machine words only")


def _pauses() -> Iterator[float]:
    pause = _FIRST_POLL
    while True:
        yield pause
        pause = min(_LAST_POLL, pause * 1.5)


def _answer(meta: Mapping[str, Any]) -> dict[str, Any]:
    if meta["status"] == "SUCCESS" and isinstance(meta["result"], dict):
        return dict(meta["result"])
    raise Unavailable("task-failed", "the worker could not answer", retry_after=5)


@contextmanager
def _broker_errors() -> Iterator[None]:
    try:
        yield
    except (KombuError, RedisError, OSError) as error:
        name = type(error).__name__
        raise Unavailable("queue-unavailable", f"the job queue does not answer ({name})") from None


def new_owner(name: str) -> str:
    """A lease owner that no other process and no earlier life of this one has."""
    return f"{name}-{uuid.uuid4().hex[:12]}"
