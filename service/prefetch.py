"""Reading ahead: the first frame asked for of a series has its other instances made ready, in the background."""

from __future__ import annotations

from collections import OrderedDict
from contextlib import suppress
from threading import Lock

from gateway.bootstrap import Gateway
from gateway.errors import Unavailable
from gateway.index_intake import QUEUE_OF, WARM_TASK
from gateway.index_rows import InstanceRow

__all__ = ["Prefetch"]

SERIES_KNOWN = 256
AGAIN_SECONDS = 600.0  # by then the cache may have been pruned
PRIORITY = 8  # behind every reader's own request
REST = -1  # of the series (worker/prefetch.py)


class Prefetch:
    """Which series were touched lately; one request each. Safe between threads."""

    def __init__(self) -> None:
        self._touched: OrderedDict[tuple[str, str], float] = OrderedDict()
        self._lock = Lock()

    def touch(self, gateway: Gateway, row: InstanceRow) -> None:
        """A frame of this instance was read. A queue that is away changes nothing for the reader."""
        if gateway.settings.hot_cache == "off" or row.study_uid is None or row.series_uid is None:
            return
        key, now = (row.study_uid, row.series_uid), gateway.index.now()
        with self._lock:
            known = self._touched.get(key)
            if known is not None and now - known < AGAIN_SECONDS:
                return
            self._touched[key] = now
            self._touched.move_to_end(key)
            while len(self._touched) > SERIES_KNOWN:
                self._touched.popitem(last=False)
        with suppress(Unavailable):
            gateway.queue.send(WARM_TASK, [row.id, REST], QUEUE_OF[WARM_TASK], PRIORITY)
