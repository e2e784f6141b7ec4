"""A short run of the fuzzer (tests/fuzz): by hypothesis here, and in a process whose memory is limited."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from codec.errors import CorruptBitstream
from codec.standard import STANDARD, htj2k_size
from tests.fuzz import decoders
from tests.fuzz.decoders import TARGETS, Seed, read, seeds, unchecked

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module", autouse=True)
def checksums_out_of_the_way() -> Iterator[None]:
    with unchecked():
        yield


@pytest.fixture(scope="module")
def known() -> list[Seed]:
    return seeds()


@pytest.mark.parametrize("target", sorted(TARGETS))
def test_every_target_has_seeds_that_it_reads(target: str, known: list[Seed]) -> None:
    own = [seed for seed in known if seed.target == target]
    assert own
    for seed in own:
        TARGETS[target](seed.data)


@pytest.mark.parametrize("target", sorted(TARGETS))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_change_is_answered_by_a_result_or_a_typed_error(
    target: str, known: list[Seed], data: st.DataObject
) -> None:
    out = bytearray(data.draw(st.sampled_from([seed for seed in known if seed.target == target])).data)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(out)))
        out[at : at + data.draw(st.integers(0, 8))] = data.draw(st.binary(max_size=8))
    read(target, bytes(out))


@pytest.mark.slow
def test_random_changes_stay_within_the_memory_limit() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.fuzz.decoders", "--engine", "random", "--seconds", "5", "--seed", "1"],
        cwd=ROOT, capture_output=True, text=True, timeout=280,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "nothing found" in done.stdout


def test_changes_are_changes() -> None:
    import random

    rng = random.Random(1)
    made = {decoders.changed(b"0123456789" * 9, rng, [b"abc" * 30]) for _ in range(50)}
    assert len(made) > 40


@pytest.mark.parametrize(
    ("at", "value"),
    [
        (36, b"\xff\xff\xff\x7f"),  # a tile of two thousand million rows: OpenJPH worked for minutes
        (24, b"\0\0\0\1"),  # an offset
        (42, b"\x0f\x01\x02"),  # a subsampled component
        (65, b"\6"),  # another number of decompositions
        (73, b"\3"),  # quantisation of no subband: OpenJPH crashed
    ],
)
def test_main_headers_of_htj2k_that_the_library_cannot_bear_are_refused(at: int, value: bytes) -> None:
    stream = bytearray(STANDARD["htj2k"].encode(decoders.picture(1), 0))
    shape = (*decoders.FMT.shape, 1)
    assert htj2k_size(bytes(stream)) == shape
    stream[at : at + len(value)] = value
    with pytest.raises(CorruptBitstream):
        htj2k_size(bytes(stream))
