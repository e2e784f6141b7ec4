"""`palimpsest selftest` at a small size: what CI breaks each time. The whole of it: docs/reliability.md."""

from __future__ import annotations

from pathlib import Path

import pytest

from palimpsest.cli_selftest import summary
from palimpsest.selftest import run_plan
from palimpsest.selftest_plan import full_plan, power_plan, short_plan

pytestmark = [pytest.mark.anomaly, pytest.mark.integration]


def test_plans_name_each_fault_once_and_the_short_one_is_part_of_the_full_one() -> None:
    names = [f"{each.group}: {each.name}" for each in full_plan()]
    repeated = {"queue: FLUSHALL", "database: deleted, then rebuilt", "SIGKILL: supervisor, from outside"}
    assert {name for name in names if names.count(name) > 1} == repeated
    assert len(names) > 100 and len(power_plan(40)) == 40
    assert len(short_plan()) > 10


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_nothing_is_lost_wrong_or_stuck_whatever_breaks(tmp_path: Path) -> None:
    """SIGKILL at steps, queue wiped, database rebuilt, I/O errors, a clock that jumps, power loss; 40 instances."""
    outcome = run_plan(tmp_path, short_plan(), instances=40, seed=11, power=True)
    report = "\n".join(summary(outcome))
    assert outcome.instances >= 40 and outcome.reads > 0, report
    assert outcome.clean, report
