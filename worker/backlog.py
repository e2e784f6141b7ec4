"""When work waits too long: it is coded by standard codecs, sealed and proven like all else, and coded anew later.

The policy is one limit, `backlog_limit_seconds`, on the age of the oldest instance that nobody has begun. While it is
passed, a worker takes milliseconds for a frame instead of a second, so that a backlog shrinks; `worker.recode` comes
back to these objects when nothing waits any more.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from gateway.bootstrap import Gateway
from gateway.index import RECODE_TASK
from gateway.index_rows import InstanceRow

__all__ = ["in_a_hurry", "recode_when_idle"]

AT_ONCE = 2  # messages a process and round: new work must not wait behind many
LOWEST = 9  # priority
LOOK_SECONDS = 2.0  # an age of minutes need not be asked for with every object


@dataclass
class _Look:
    """The age as it was asked for last, by gateway."""

    at: dict[int, tuple[float, float]] = field(default_factory=dict)


_LAST = _Look()


def in_a_hurry(gw: Gateway, row: InstanceRow) -> bool:
    """Whether an instance is to be coded quickly: the backlog's age is past its limit, or the instance's own is."""
    limit = gw.settings.backlog_limit_seconds
    if not limit:
        return False
    if not row.last_error and gw.index.now() - row.received_at > limit:
        return True
    now, (at, age) = time.monotonic(), _LAST.at.get(id(gw.index), (-LOOK_SECONDS, 0.0))
    if now - at >= LOOK_SECONDS:
        age = gw.index.backlog_age()
        _LAST.at = {id(gw.index): (now, age)}
    return age > limit


def recode_when_idle(gw: Gateway) -> int:
    """A duty of the sweep: ask for a few instances to be coded anew, if nothing waits to be archived."""
    if not gw.index.is_idle() or gw.queue.depths()["encode"]:
        return 0
    ids = gw.index.recode_due(AT_ONCE * gw.settings.encode_processes)
    for each in ids:
        gw.queue.send(RECODE_TASK, [each], "encode", LOWEST)
    return len(ids)
