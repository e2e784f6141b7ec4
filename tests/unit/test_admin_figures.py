"""What the admin pages compute and say: forecast, half hours, modalities, words, plots, and what needs a person."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any
from xml.etree import ElementTree

import pytest

from gateway.index_tally import Backlog, DiskSample, Done, FlowRow
from gateway.settings import load_settings
from service.figures import by_half_hour, by_modality, forecast
from service.plots import Column, bar, columns, nice_ceiling, spread
from service.verdict import judge
from service.words import age, count, long, size, when

DAY = 86_400.0


def samples(*free: int, step: int = 1800) -> list[DiskSample]:
    return [DiskSample("spool", number * step, 1000, value) for number, value in enumerate(free)]


def test_the_forecast_is_not_turned_by_one_large_deletion() -> None:
    steady = forecast("spool", 1000, 800, 100, samples(900, 880, 860, 840, 820, 800))
    assert steady.rate == pytest.approx(20 / 1800) and steady.full_in == pytest.approx(700 / (20 / 1800))
    deleted = forecast("spool", 1000, 880, 100, samples(900, 880, 860, 990, 970, 950, 930, 910, 890, 870))
    assert deleted.rate is not None and deleted.rate > 0
    assert steady.history[0] == (0, 100)


def test_there_is_no_forecast_without_half_an_hour_and_none_for_what_empties() -> None:
    assert forecast("spool", 1000, 800, 100, []).rate is None
    assert forecast("spool", 1000, 800, 100, samples(900, 100, step=300)).full_in is None
    assert forecast("spool", 1000, 800, 100, samples(700, 750, 800)).full_in is None
    below = forecast("spool", 1000, 50, 100, samples(100, 80, 50))
    assert below.full_in == 0.0
    long_history = forecast("spool", 10**6, 1000, 0, samples(*range(10**6, 10**6 - 5760, -10), step=300))
    assert long_history.rate == pytest.approx(10 / 300)


def test_half_hours_hold_what_their_buckets_hold_and_the_empty_ones() -> None:
    rows = [FlowRow(3600, "CT", 2, 20, 1, 10, 5, 1, 3.0), FlowRow(3900, "", 1, 9, 0, 0, 0, 0, 0.0)]
    found = by_half_hour(rows, 5000.0, hours=1)
    assert [(each.at, each.received, each.archived, each.sent) for each in found] == [(1800, 0, 0, 0), (3600, 3, 1, 1)]
    assert found[1].clock == "01:00" and len(by_half_hour([], 1e9)) == 48


def test_modalities_beyond_a_dozen_are_one_row() -> None:
    totals = {f"M{n}": {"instances": n + 1, "bytes_in": 10, "bytes_archived": 5} for n in range(20)}
    newest = [Done("M19", 100, 40, seconds) for seconds in range(100)] + [Done("M0", 9, 3, 1.0)]
    found = by_modality(totals, newest)
    assert len(found) == 12 and found[0].name == "M19" and found[-1].name == "other"
    assert sum(each.instances for each in found) == sum(range(21))
    assert (found[0].ratio, found[0].seconds, found[0].slowest) == (2.5, (10, 50, 95), 95)
    assert found[-1].sample == 1 and found[1].ratio == 0.0


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, "–"),
        (-3, "0.0 s"),
        (2.04, "2.0 s"),
        (59, "59 s"),
        (60, "1 minute"),
        (7200, "2 hours"),
        (3 * DAY, "3 days"),
    ],
)
def test_lengths_of_time_in_words(seconds: float | None, text: str) -> None:
    assert long(seconds) == text
    assert age(seconds) == (text if seconds is None or seconds >= 60 else "seconds")


def test_other_words() -> None:
    assert (size(0), size(999), size(1500), size(2.5e13)) == ("0 B", "999 B", "1.5 kB", "25.0 TB")
    assert (count(1, "thing"), count(1200, "thing"), when(0), when(1)) == (
        "1 thing", "1,200 things", "–", "1970-01-01 00:00:01 UTC"
    )  # fmt: skip
    assert [nice_ceiling(value) for value in (0, 1, 1.1, 2, 37, 500, 501)] == [1, 1, 2, 2, 50, 500, 1000]


def test_plots_are_well_formed_named_and_escaped() -> None:
    given = [Column('<script>"', (3.0, 0.0)), Column("b", (12.0, 5.0), "06:00")]
    drawn = columns(given, ("x", "y"), "A plot <b>", "What & why", limit=11.0)
    root = ElementTree.fromstring(f"<div>{drawn}</div>")
    plot = root[0]
    assert plot.get("role") == "img" and plot[0].text == "A plot <b>" and plot[1].text == "What & why"
    assert {each.get("id") for each in plot[:2]} == set((plot.get("aria-labelledby") or "").split())
    bars = [each for each in plot.iter("rect") if each.get("class") in ("s0", "s1")]
    assert [each.get("height") for each in bars] == ["15.00%", "60.00%", "25.00%"]  # of 20
    assert root[1].get("aria-hidden") == "true" and "style" not in drawn
    for strip in (bar(2, 0), bar(5, 4), spread(0, 0, 0, 0), spread(1, 5, 1e9, 100)):
        for rect in ElementTree.fromstring(strip):
            assert 0 <= float((rect.get("x") or "").rstrip("%")) <= 100
    assert columns([], (), "Nothing", "Nothing").count("<rect") == 0


def quiet() -> dict[str, Any]:
    care = SimpleNamespace(damaged=0)
    return {
        "dependencies": {"database": {"ok": True, "required": True}}, "disk": {"free": 10, "watermark": 1}, "disks": [],
        "oldest_unfinished_at": None, "backlog": [], "workers": [], "alerts": [], "failures": [], "conflicts": 0,
        "destinations": [], "care": care, "backup": {"until": 1.0, "required": True, "old": False}, "keys": [],
        "standing": SimpleNamespace(export_lag_seconds=None),
    }  # fmt: skip


def worker(name: str, state: str, seen: float) -> Any:
    return SimpleNamespace(state=state, row=SimpleNamespace(name=name, host="node", seen_at=seen))


def test_nothing_is_said_while_all_is_well_and_each_trouble_by_its_weight() -> None:
    settings, now = load_settings(), 1e6
    assert judge(quiet(), settings, now) == []
    circuit = {"open": True, "reason": "timeout"}
    troubles: list[tuple[dict[str, Any], str, str]] = [
        ({"dependencies": {"queue": {"ok": False, "required": False, "reason": "away"}}}, "warn", "queue: away."),
        ({"disk": {"free": 0, "watermark": 1}}, "bad", "below its watermark"),
        ({"disks": [SimpleNamespace(place="spool", full_in=3600.0)]}, "bad", "full in 1 hour"),
        ({"disks": [SimpleNamespace(place="spool", full_in=3 * DAY)]}, "warn", "full in 3 days"),
        ({"oldest_unfinished_at": now - 700}, "warn", "11 minutes"),
        ({"oldest_unfinished_at": now - 7200}, "bad", "2 hours"),
        (
            {"backlog": [Backlog("5", 1, now, {})], "workers": [worker("sweep", "idle", now)]},
            "bad",
            "no worker is alive",
        ),
        ({"workers": [worker("a", "silent", now - 90), worker("b", "silent", now - 60)]}, "warn", "1 minute: a, b."),
        ({"alerts": [{"severity": "warning"}]}, "warn", "1 open alert, 0 critical."),
        ({"failures": [{"kind": "dead-letter", "count": 3}]}, "bad", "3 dead letters"),
        ({"failures": [{"kind": "instance", "count": 1}]}, "warn", "1 instance failed"),
        ({"conflicts": 2}, "warn", "2 versions"),
        (
            {"destinations": [{"name": "pacs", "circuit": circuit, "probe": None}]},
            "bad",
            "pacs is left alone: timeout.",
        ),
        ({"care": SimpleNamespace(damaged=1)}, "bad", "1 archive object damaged"),
        ({"backup": {"until": None, "required": True, "old": False}}, "bad", "No proven backup"),
        ({"backup": {"until": 1.0, "required": True, "old": True}}, "warn", "more than a month"),
        ({"keys": [SimpleNamespace(id="kek-1", days=800, due=True)]}, "warn", "kek-1 has been in use for 800 days"),
        ({"standing": SimpleNamespace(export_lag_seconds=7200.0)}, "warn", "syslog server for 2 hours"),
    ]
    for change, level, words in troubles:
        found = judge(quiet() | change, settings, now)
        assert [each.level for each in found] == [level], change
        assert words in found[0].text and found[0].link.startswith("/admin")
    both = judge(quiet() | troubles[5][0] | troubles[10][0] | troubles[9][0], settings, now)
    assert [each.level for each in both] == sorted(each.level for each in both)
