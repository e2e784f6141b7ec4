"""Filling the hot cache before anybody asks: the copy that viewers are given, for what arrived and what is being read.

One message is one object, at the least priority of the retrieve queue: a reader's own request never waits for more than
the one under way.  A message of a series sends the next one itself, so a long series is read ahead step by step and
given up when readers queue.  Nothing depends on it: what was not made ahead is made when it is asked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import Any, Final

from gateway.bootstrap import Gateway
from gateway.errors import Gone, InvalidInstance, NotFound, PalimpsestError, Unavailable, Unsupported
from gateway.hotcache import HOT_KIND, cache_of
from gateway.index import QUEUE_OF, WARM_TASK, InstanceRow
from gateway.instance import State
from worker.retrieve import retrieve

__all__ = ["arrived", "warm"]

#: Behind every request of a reader (0) and what is read ahead of one (AHEAD).
BEHIND: Final = 9
AHEAD: Final = 8
#: Messages waiting, beyond which nothing is made ahead.
MOST_WAITING: Final = 32
ALL: Final = -1


def arrived(gw: Gateway, ids: Sequence[int]) -> None:
    """Ask for the copies of instances that were just archived, where that is wanted and the queue is short."""
    if gw.settings.hot_cache != "arrival" or not ids:
        return
    with suppress(Unavailable):
        if _short(gw):
            for instance_id in ids:
                gw.queue.send(WARM_TASK, [instance_id, 0], QUEUE_OF[WARM_TASK], BEHIND)


def warm(gw: Gateway, instance_id: int, left: int) -> dict[str, Any]:
    """Make the copy of one instance, then ask for that of the next one of its series.

    left: how many more of the series; ALL: the rest of it, up to `prefetch_instances`. Raises NotFound.
    """
    row = gw.index.get(instance_id)
    made = _copy(gw, row)
    if left == 0 or row.study_uid is None or row.series_uid is None:
        return {"made": made}
    series = [each.id for each in gw.index.by_study(row.study_uid, row.series_uid)]
    left = min(len(series), gw.settings.prefetch_instances + 1) - 1 if left == ALL else left - 1
    if left > 0 and series and _short(gw):
        following = next((each for each in series if each > row.id), series[0])
        gw.queue.send(WARM_TASK, [following, left], QUEUE_OF[WARM_TASK], AHEAD)
    return {"made": made}


def _copy(gw: Gateway, row: InstanceRow) -> str:
    """What was made: the kind, or '' for what has no copy. What has no lossless one is kept as it is, if it is only in
    the archive.
    """
    if row.shredded_at is not None or row.size > gw.settings.hot_object_bytes:
        return ""
    for kind in (HOT_KIND, "original") if row.state is State.RELEASED else (HOT_KIND,):
        with suppress(Unsupported, InvalidInstance, Gone, NotFound):
            retrieve(gw, row.id, kind)
            if gw.index.get(row.id).shredded_at is not None:  # meanwhile
                cache_of(gw.settings).drop_instances([row.digest])
                return ""
            return kind
    return ""


def _short(gw: Gateway) -> bool:
    return gw.queue.depths()[QUEUE_OF[WARM_TASK]] <= MOST_WAITING


def warm_failed(error: BaseException) -> dict[str, Any]:
    """Nothing is lost: the instance is read when it is asked for, and that is when a failure counts."""
    return {"error": error.reason if isinstance(error, PalimpsestError) else type(error).__name__}
