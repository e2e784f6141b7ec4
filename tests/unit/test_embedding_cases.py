"""A few cases of the long run (tests/acceptance/embeds.py), and that the run notices what it is for."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from stego import selfcontained
from stego.cover import Cover
from tests.acceptance import embeds
from tests.embedding_cases import draw, run_case, use_ring


@pytest.fixture
def ring(tmp_path: Path) -> None:
    use_ring(tmp_path / "keys", create=True)


def test_random_embeds_are_restored_or_refused(ring: None) -> None:
    outcomes = [run_case(number, seed=7) for number in range(40)]
    assert [each.logged() for each in outcomes if each.result == "failed"] == []
    done = Counter(each.mode for each in outcomes if each.result == "exact")
    assert {"segmented", "self-contained", "hidden"} <= set(done)
    assert sum(done.values()) >= 20


def test_a_case_follows_from_its_number() -> None:
    one, other = draw(5, 1), draw(5, 1)
    assert np.array_equal(one.values, other.values)
    assert (one.payload, one.key, one.mode) == (other.payload, other.key, other.mode)
    assert draw(6, 1).key != one.key


def test_every_kind_of_frame_is_drawn() -> None:
    cases = [draw(number, 3) for number in range(200)]
    assert {case.fmt.bits_stored for case in cases} == set(range(8, 17))
    assert {case.fmt.signed for case in cases} == {True, False}
    assert {case.fmt.bits_allocated for case in cases} == {8, 16}
    for case in cases:
        assert case.words.shape == case.values.shape


def test_a_carrier_that_does_not_restore_is_noticed(ring: None, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = selfcontained.extract

    def wrong(cover: Cover, **given: bytes) -> tuple[bytes, np.ndarray[tuple[int, int], np.dtype[np.int32]]]:
        message, values = plain(cover, stego_key=given["stego_key"], salt=given["salt"])
        return message, values + 1

    monkeypatch.setattr(selfcontained, "extract", wrong)
    cases = [number for number in range(40) if draw(number, 7).mode == "self-contained"]
    found = [outcome for number in cases if (outcome := run_case(number, 7)).result != "refused"]
    assert found
    assert {(outcome.result, outcome.problem) for outcome in found} == {("failed", "verify")}


def test_the_run_logs_every_case_and_sums_up(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = tmp_path / "log"
    embeds.main([str(log), "--count", "60", "--jobs", "1", "--seed", "5"])
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    summary = lines[-1]["summary"]
    assert summary["embedded"] == 60
    assert summary["failures"] == 0
    assert sum(line.get("result") == "exact" for line in lines) == 60
    assert "uniformity" in capsys.readouterr().out
    assert embeds.main([str(log), "--show"]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("## Long run")
    assert "60 embeds" in shown
    log.write_text("\n".join(json.dumps(line) for line in lines[:-1]))
    with pytest.raises(ValueError, match="did not end"):
        embeds.section(log)
