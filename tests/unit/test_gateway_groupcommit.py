"""Group commit: many callers, few batches, nobody forgotten, nobody pays for a neighbour."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from gateway import audit
from gateway.bootstrap import Gateway
from gateway.errors import OutOfResources, PalimpsestError, Unavailable
from gateway.groupcommit import GroupCommit
from tests.fakes import part10, take_in


def test_who_comes_while_one_is_at_work_shares_the_next_batch() -> None:
    batches: list[list[int]] = []
    begun, go_on = threading.Event(), threading.Event()

    def work(items: Sequence[int]) -> list[int]:
        batches.append(list(items))
        begun.set()
        assert go_on.wait(120)
        return [item * 10 for item in items]

    group = GroupCommit(work)
    with ThreadPoolExecutor(9) as pool:
        first = pool.submit(group.submit, 0)
        assert begun.wait(120)
        rest = [pool.submit(group.submit, number) for number in range(1, 9)]
        while len(group._waiting) < 8:
            pass
        go_on.set()
        assert [first.result(120), *(each.result(120) for each in rest)] == [number * 10 for number in range(9)]
    assert batches[0] == [0] and sorted(batches[1]) == list(range(1, 9)) and len(batches) == 2


def test_one_bad_item_fails_alone() -> None:
    def work(items: Sequence[int]) -> list[int]:
        if 3 in items:
            raise OutOfResources("disk-full")
        return list(items)

    group = GroupCommit(work)

    def submit(number: int) -> int | str:
        try:
            return group.submit(number)
        except PalimpsestError as error:
            return error.reason

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(submit, range(200)))
    assert answers == [number if number != 3 else "disk-full" for number in range(200)]


def test_after_an_error_of_all_nothing_is_repeated() -> None:
    batches: list[int] = []
    begun, go_on = threading.Event(), threading.Event()

    def work(items: Sequence[int]) -> list[int]:
        batches.append(len(items))
        if len(batches) > 1:
            raise Unavailable("storage-error")
        begun.set()
        assert go_on.wait(120)
        return list(items)

    group = GroupCommit(work, shared=(Unavailable,))
    with ThreadPoolExecutor(9) as pool:
        first = pool.submit(group.submit, 0)
        assert begun.wait(120)
        rest = [pool.submit(group.submit, number) for number in range(1, 9)]
        while len(group._waiting) < 8:
            pass
        go_on.set()
        assert first.result(120) == 0
        for each in rest:
            with pytest.raises(Unavailable, match="storage-error"):
                each.result(120)
    assert batches == [1, 8]


def test_an_error_of_ours_is_raised_and_leaves_nobody_waiting() -> None:
    def work(items: Sequence[int]) -> list[int]:
        raise KeyError(items[0])

    group = GroupCommit(work)
    with pytest.raises(KeyError):
        group.submit(1)
    with pytest.raises(KeyError):  # and the next one leads again
        group.submit(2)


def test_many_doors_at_once_make_each_object_one_row_and_one_line_in_the_trail(gw: Gateway) -> None:
    objects = [part10(f"1.2.3.{number}") for number in range(40)]
    with ThreadPoolExecutor(8) as pool:
        outcomes = list(pool.map(lambda data: take_in(gw, data).outcome, objects * 2))
    assert sorted(outcomes) == ["duplicate"] * 40 + ["new"] * 40
    assert gw.index.counts().total == len(list(gw.spool)) == 40
    assert list(gw.settings.incoming_dir.iterdir()) == []
    report = audit.verify(gw.index)
    assert (report.ok, report.count) == (True, 80)


def test_the_same_uid_with_other_pixels_in_one_moment_is_a_conflict(gw: Gateway) -> None:
    objects = [part10("1.2.3", pixels=bytes([number]) * 64) for number in range(8)]
    with ThreadPoolExecutor(8) as pool:
        outcomes = list(pool.map(lambda data: take_in(gw, data).outcome, objects))
    assert sorted(outcomes) == ["conflict"] * 7 + ["new"]
    assert sum(row.current for row in gw.index.versions("1.2.3")) == 1


def test_a_failed_commit_keeps_the_files_for_the_sweep(gw: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    def down(*_: object, **__: object) -> None:
        raise Unavailable("database-unavailable")

    monkeypatch.setattr(type(gw.index), "add_received_many", down)

    def store(data: bytes) -> str:
        try:
            return take_in(gw, data).outcome
        except PalimpsestError as error:
            return error.reason

    with ThreadPoolExecutor(4) as pool:
        reasons = list(pool.map(store, [part10() for _ in range(8)]))
    assert reasons == ["database-unavailable"] * 8
    assert len(list(gw.spool)) == 8 and gw.index.counts().total == 0
    assert not any(Path(gw.settings.incoming_dir).iterdir())
