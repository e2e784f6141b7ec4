"""One capsule over a series: small shares by the square-root law, and every file back bit for bit."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest

from gateway.errors import IntegrityError, PolicyRefused, Unsupported
from gateway.keys import KeyRing
from stego.record import Record
from tests.object_makers import FACTS, IDENTITY, image, outside_uids
from tests.unit.test_worker_stegoobject import grainy
from worker import stegoseries
from worker.identity import identify
from worker.stegoseries import StegoSeries, make_series, open_series

SHAPES = ((160, 160), (240, 200), (288, 272), (200, 200))


@pytest.fixture(scope="module")
def ring(tmp_path_factory: pytest.TempPathFactory) -> KeyRing:
    return KeyRing.load_or_create(tmp_path_factory.mktemp("ring") / "keys")


@pytest.fixture(scope="module")
def files() -> list[bytes]:
    made = [image([grainy(*shape, seed=seed)], stored=12, SOPInstanceUID=f"1.2.3.{seed}")
            for seed, shape in enumerate(SHAPES)]  # fmt: skip
    air = np.zeros((64, 64), np.uint16)
    air[30:34, 30:34] = 900
    return [*made, image([air], stored=12, SOPInstanceUID="1.2.3.99")]


@pytest.fixture(scope="module")
def series(ring: KeyRing, files: list[bytes]) -> StegoSeries:
    return make_series(files[:4], FACTS, ring)


def parts(series: StegoSeries) -> list[bytes]:
    return [data for _, data in series.images]


def test_all_files_come_back_in_any_order(ring: KeyRing, files: list[bytes], series: StegoSeries) -> None:
    assert open_series(parts(series), ring, series.restoration) == files[:4]
    assert open_series(parts(series)[::-1], ring, series.restoration) == files[:4][::-1]


def test_shares_follow_the_square_root_law(series: StegoSeries) -> None:
    assert sum(series.shares) in (768, 1024)
    sizes = np.array([rows * columns for rows, columns in SHAPES])
    expected = np.sqrt(sizes) / np.sqrt(sizes).sum() * sum(series.shares)
    assert np.abs(np.array(series.shares) - expected).max() < 0.1 * sum(series.shares)
    assert all(series.changed)


def test_images_are_deidentified_and_have_uids_of_their_own(series: StegoSeries) -> None:
    read = [pydicom.dcmread(io.BytesIO(data)) for data in parts(series)]
    assert len({ds.SOPInstanceUID for ds in read}) == 4
    assert len({ds.SeriesInstanceUID for ds in read}) == 1
    for value in IDENTITY.values():
        assert all(value.encode() not in outside_uids(data) for data in [*parts(series), series.restoration])


def test_wrong_key_and_missing_or_foreign_images_are_one_refusal(
    ring: KeyRing, series: StegoSeries, tmp_path: Path
) -> None:
    other = KeyRing.load_or_create(tmp_path / "keys")
    foreign = image([grainy(seed=77)], stored=12)
    seen = set()
    for images, keys in ((parts(series), other), (parts(series)[1:], ring), ([*parts(series)[1:], foreign], ring)):
        with pytest.raises(IntegrityError) as caught:
            open_series(images, keys, series.restoration)
        seen.add((caught.value.reason, caught.value.message))
    assert len(seen) == 1


def test_another_series_record_is_refused(ring: KeyRing, files: list[bytes], series: StegoSeries) -> None:
    again = make_series(files[:4], FACTS, ring)
    with pytest.raises(IntegrityError, match="another series"):
        open_series(parts(series), ring, again.restoration)


def test_files_of_two_series_are_not_mixed(ring: KeyRing, files: list[bytes]) -> None:
    stranger = image([grainy(seed=5)], stored=12, SeriesInstanceUID="1.2.9")
    with pytest.raises(PolicyRefused, match="one series"):
        make_series([*files[:3], stranger], FACTS, ring)


def test_what_does_not_fit_is_refused(ring: KeyRing, files: list[bytes]) -> None:
    with pytest.raises(Unsupported) as caught:
        make_series(files[:1], FACTS, ring)
    assert caught.value.reason == "no-room"
    with pytest.raises(Unsupported, match="single-frame"):
        make_series([image([grainy(), grainy(seed=2)], stored=12)], FACTS, ring)
    with pytest.raises(Unsupported, match="look the same"):
        make_series([files[0], files[0]], FACTS, ring)


def test_the_restored_file_is_compared_with_the_signed_record(
    ring: KeyRing, files: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    def other(*arguments: Any) -> Record:
        return replace(identify(*arguments), file_sha256="0" * 64)

    monkeypatch.setattr(stegoseries, "identify", other)
    with pytest.raises(IntegrityError) as refused:
        make_series(files[:4], FACTS, ring)
    assert refused.value.reason == "restore-mismatch"
