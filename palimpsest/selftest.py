"""`palimpsest selftest`: instances flow into a whole gateway while it is broken, step by step; then the reckoning.

Nothing is taken from the gateway's word: what counts is what senders were promised and what WADO-RS gives back, byte
for byte, after everything has come to rest. lost: promised and not given back. wrong: given back otherwise, at any
moment. stuck: not archived, not forwarded or not released from the spool in the end. Duplicates of work are allowed; a
second row or a second delivery under another name is not.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

from palimpsest.selftest_gateway import UnderTest
from palimpsest.selftest_judge import Verdict, judge, resting
from palimpsest.selftest_objects import Source
from palimpsest.selftest_plan import Break
from palimpsest.selftest_traffic import Acknowledged, Ledger, Modality, Reader, Uploader

__all__ = ["Outcome", "Row", "Selftest", "run_plan"]

EXTRA_SECONDS: Final = 0.4  # while a fault waits for work that comes by, one more object is sent after so long,
EXTRA_GROWTH: Final = 1.25  # and after that one, longer: a slow machine is not drowned
MEMORY_SECONDS: Final = 5.0
POLL_SECONDS: Final = 0.05


@dataclass
class Row:
    """One fault. at: seconds since the start; struck: how often, None: cannot be done here; promised: objects that were
    acknowledged from here to the next fault; under_way: promised and not archived when it began.
    """

    group: str
    name: str
    at: float
    struck: int | None = 0
    promised: int = 0
    under_way: int = 0
    seconds: float = 0.0
    lost: int = 0
    wrong: int = 0
    stuck: int = 0


@dataclass
class Outcome:
    """What came of it. refused: what senders heard instead of Success, and how often; memory: role -> [[seconds,
    resident bytes], ...].
    """

    instances: int
    refused: dict[str, int]
    reads: int
    unanswered_reads: int
    seconds: float
    rows: list[Row]
    verdict: Verdict
    memory: dict[str, list[tuple[float, int]]] = field(default_factory=dict)

    @property
    def missed(self) -> list[str]:
        """Faults that never struck."""
        struck = {(row.group, row.name) for row in self.rows if row.struck != 0}
        return [row.name for row in self.rows if (row.group, row.name) not in struck]

    @property
    def clean(self) -> bool:
        """0 lost, 0 wrong, 0 stuck, nothing double, and everything that was to be broken was."""
        return self.verdict.clean and not self.missed

    def as_json(self) -> dict[str, Any]:
        """Everything, JSON-able."""
        return {**asdict(self), "missed": self.missed, "clean": self.clean}


class Selftest:
    """The site of all faults: see `palimpsest.selftest_plan.Site`."""

    def __init__(self, under: UnderTest, *, seed: int, watch_memory: bool, say: Callable[[str], None]) -> None:
        self.under = under
        self.ledger = Ledger()
        self._say, self._seed = say, seed
        self._began = time.monotonic()
        self._memory: dict[str, list[tuple[float, int]]] | None = {} if watch_memory else None
        self._memory_at = 0.0
        self.source = Source(under.folder / "sent", seed)

    def start(self) -> None:
        """The gateway, three senders, of which two are behind fault proxies, and a reader."""
        self.under.start()
        objects, ledger, under = iter(self.source), self.ledger, self.under
        token = under.token()
        api = f"http://127.0.0.1:{under.to_api.port}"
        for sender in (
            Modality("modality", ledger, objects, under.settings.dicom_port),
            Modality("shaky", ledger, objects, under.to_listener.port, renew_every=1),
            Uploader("uploader", ledger, objects, api, token),
            Reader(ledger, under.url, token, self._seed),
        ):
            sender.start()

    def work_until(self, condition: Callable[[], object], seconds: float) -> bool:
        """See Site. After a while without success some more is sent."""
        deadline, pause = time.monotonic() + seconds, EXTRA_SECONDS
        extra_at = time.monotonic() + 4 * pause
        while not condition():
            if time.monotonic() > deadline:
                return False
            if time.monotonic() > extra_at:
                extra_at, pause = extra_at + pause, pause * EXTRA_GROWTH
                self.ledger.quota += 1
            self._tick()
        return True

    def pause(self, seconds: float) -> None:
        """See Site."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            self._tick()

    def _tick(self) -> None:
        self.under.poll()
        time.sleep(POLL_SECONDS)
        since = time.monotonic() - self._began
        if self._memory is not None and since > self._memory_at:
            self._memory_at = since + MEMORY_SECONDS
            for role, used in self.under.memory():
                self._memory.setdefault(role, []).append((round(since, 1), used))

    def carry_out(self, plan: Sequence[Break], instances: int) -> list[Row]:
        """Break everything in turn while at least `instances` objects come in; what did not strike, once more."""
        rows = []
        for number, each in enumerate(plan):
            self.ledger.quota = max(self.ledger.quota, instances * (number + 1) // (len(plan) + 1))
            rows.append(self._break(each))
        rows += [self._break(each) for each, row in zip(plan, rows, strict=True) if row.struck == 0]
        self.ledger.quota = max(self.ledger.quota, instances)
        return rows

    def _break(self, each: Break) -> Row:
        row = Row(each.group, each.name, round(time.monotonic() - self._began, 1))
        before = len(self.ledger.acknowledged)
        row.under_way = max(0, before - self.under.archived())
        row.struck = each.act(self)
        row.promised = len(self.ledger.acknowledged) - before
        row.seconds = round(time.monotonic() - self._began - row.at, 1)
        self._say(f"{row.at:7.1f} s  {each.group}: {each.name}  struck {row.struck}, {row.promised} acknowledged")
        return row

    def settle(self, patience: float) -> None:
        """All that was begun is acknowledged, and everything came to rest, or nothing moved for `patience` seconds."""
        moved, last = time.monotonic(), (-1, -1)
        while True:
            state = (len(self.ledger.acknowledged), resting(self.under))
            if state != last:
                moved, last = time.monotonic(), state
            everything = state[0] == self.ledger.quota
            if everything:
                self.ledger.stopped.set()
            if (everything and state[1] >= state[0]) or time.monotonic() - moved > patience:
                break
            self.pause(0.5)
        self.ledger.stopped.set()

    def finish(self, rows: list[Row], patience: float) -> Outcome:
        """Come to rest, then ask for everything."""
        self._say(f"settling: {len(self.ledger.acknowledged)} acknowledged, {self.under.archived()} archived")
        self.settle(patience)
        promised = list(self.ledger.acknowledged)
        verdict = judge(self.under, [each.sent for each in promised], self.ledger.wrong)
        _attribute(rows, promised, self._began, verdict)
        return Outcome(
            instances=len(promised), refused=dict(self.ledger.heard), reads=self.ledger.reads,
            unanswered_reads=self.ledger.unanswered, seconds=round(time.monotonic() - self._began, 1), rows=rows,
            verdict=verdict, memory=self._memory or {},
        )  # fmt: skip


def _attribute(rows: list[Row], promised: list[Acknowledged], began: float, verdict: Verdict) -> None:
    """Who was acknowledged during which fault."""
    for each in promised:
        row = next((row for row in reversed(rows) if row.at <= each.at - began), None)
        if row is not None:
            row.lost += each.sent.uid in verdict.lost
            row.wrong += each.sent.uid in verdict.wrong
            row.stuck += each.sent.uid in verdict.stuck


def run_plan(
    folder: Path, plan: Sequence[Break], *, instances: int, seed: int, database: str | None = None, power: bool = False,
    watch_memory: bool = False, patience: float = 240.0, say: Callable[[str], None] = lambda _: None,
) -> Outcome:  # fmt: skip
    """Everything, in an empty folder. Raises NotRunning if the gateway did not come up again after a fault."""
    with UnderTest(folder, database=database, power=power) as under:
        test = Selftest(under, seed=seed, watch_memory=watch_memory, say=say)
        test.start()
        rows = test.carry_out(plan, instances)
        return test.finish(rows, patience)
