"""Wake-ups after the answer: nothing that goes wrong with one batch stops the next."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from gateway.accept import accept_instance
from gateway.bootstrap import Gateway
from gateway.jobs import MemoryQueue, Message
from service.listener_store import Waker
from tests.fakes import incoming, part10
from tests.running import until


def test_an_error_that_nobody_foresaw_does_not_end_the_wake_ups(
    gw: Gateway, memory_queue: MemoryQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = memory_queue.send_many
    failed: list[int] = []

    def send_many(messages: Sequence[Message]) -> None:
        if not failed:
            failed.append(1)
            raise RuntimeError
        real(messages)

    monkeypatch.setattr(memory_queue, "send_many", send_many)
    waker = Waker(gw)
    first, second = (
        accept_instance(gw, incoming(gw, part10()), source="dimse", calling_ae="X", wake=False).row for _ in range(2)
    )
    waker.wake(first.id)
    assert until(lambda: bool(failed))
    waker.wake(second.id)
    assert until(lambda: {message.args for message in gw.index.outbox_due()} == {(first.id,)})  # the sweep sends them
    assert memory_queue.pop("encode") == ("palimpsest.encode", (second.id,))
