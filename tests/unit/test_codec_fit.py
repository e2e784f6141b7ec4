"""The encoder's fit of predictors: the kernel's normal equations are those of plain NumPy; tiles for two threads."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from codec import frame
from codec.frame import encode_frame
from codec.learnedfit import Fitting
from codec.learnedplan import LARGE_TILE, choose_states, tile_height
from codec.pixelformat import PixelFormat
from codec.plan import padded
from codec.standard import STANDARD
from codec.tables import PAD, TAPS, TOP
from tests.unit.codec_images import noise
from tests.unit.codec_networks import known, weight_file


def texture(rows: int, columns: int, seed: int) -> NDArray[np.int32]:
    """Waves under noise, of which one half is rougher."""
    y, x = np.mgrid[:rows, :columns]
    rough = noise(rows * columns, seed).reshape(rows, columns).astype(np.int32) % 40
    waves = 400 + 90 * np.sin(x / 7) + 60 * np.cos((x + 2 * y) / 11)
    return np.asarray(waves.astype(np.int32) + np.where(y < rows // 2, rough, rough >> 3), np.int32)


def normal_equations(
    plane: NDArray[np.int32], previous: NDArray[np.int32] | None, margins: tuple[int, int, int], thresholds: list[int]
) -> NDArray[np.float64]:
    """What Fitting.of gathers, sample by sample in float64; `margins`: samples left out above, left, right."""
    top, left, right = margins
    buf, size = padded(plane, int(plane[0, 0])), len(TAPS) + 1 + (0 if previous is None else 9)
    out = np.zeros((3 * (len(thresholds) + 1), size, size))
    for row in range(top, plane.shape[0]):
        for column in range(left, plane.shape[1] - right):
            y, p = row + TOP, column + PAD
            w, n, nw, ne, ww, nn = (
                int(buf[y + a, p + b]) for a, b in ((0, -1), (-1, 0), (-1, -1), (-1, 1), (0, -2), (-2, 0))
            )
            down, across = abs(w - nw) + abs(n - nn), abs(n - nw) + abs(w - ww)
            activity = down + across + abs(n - ne)
            direction = 0 if 2 * down < across else 1 if down <= 2 * across else 2
            numbers = [int(buf[y + a, p + b]) for a, b in TAPS]
            if previous is not None:
                numbers += [int(value) for value in previous[row : row + 3, column : column + 3].ravel()]
            line = (np.array([*numbers, int(buf[y, p])]) - (w + n) / 2) / np.sqrt(4 + (activity / 5) ** 2)
            out[3 * sum(activity > threshold for threshold in thresholds) + direction] += np.outer(line, line)
    return out


@pytest.mark.parametrize("chained", [False, True])
@pytest.mark.parametrize(
    ("shape", "margins"),
    [((40, 90), (TOP, PAD, 10)), ((40, 31), (TOP, 0, 0)), ((9, 70), (0, 0, 0)), ((1, 1), (0, 0, 0))],
)
def test_normal_equations_are_those_of_plain_numpy(
    shape: tuple[int, int], margins: tuple[int, int, int], chained: bool
) -> None:
    plane = texture(*shape, 3)
    previous = np.pad(texture(*shape, 4), 1, mode="edge") if chained else None
    fitting = Fitting.of(plane, previous, 3)
    expected = normal_equations(plane, previous, margins, [int(each) for each in fitting.thresholds])
    assert fitting.parts.shape == expected.shape
    np.testing.assert_allclose(fitting.parts, expected, rtol=1e-4, atol=1e-3 * float(np.abs(expected).max() + 1e-9))


def test_classes_hold_about_as_many_samples_each() -> None:
    fitting = Fitting.of(texture(200, 300, 5), None, 4)
    weights = fitting.parts.reshape(4, 3, 36, 36).sum(axis=1)
    assert len(fitting.thresholds) == 3
    assert all(float(np.trace(one)) > 0 for one in weights)


@pytest.mark.parametrize(("rows", "columns"), [(512, 512), (1760, 1760), (2487, 2048), (7000, 5000)])
def test_large_planes_have_an_even_number_of_tiles(rows: int, columns: int) -> None:
    height = tile_height(rows, columns, 1 << 17)
    tiles = -(-rows // height)
    assert tiles % 2 == 0
    assert height % 16 == 0
    assert height * columns <= LARGE_TILE + 16 * columns


def test_states_cost_what_they_may() -> None:
    assert choose_states(8 * 100_000, 2, 0.0004) == 4
    assert choose_states(8 * 100_000, 2, 0.0012) == 8
    assert choose_states(0.0, 1, 0.0012) == 1


@pytest.mark.parametrize("threads", [1, 2])
def test_of_equally_long_candidates_the_first_of_the_profile_is_kept(
    threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    fmt = PixelFormat(16, 16, 1, 16, 12, 11, False)
    words = texture(16, 16, 6).astype(np.uint16)
    monkeypatch.setattr(frame, "write_learned", lambda coded: bytes(300))
    monkeypatch.setitem(STANDARD, "jpegls", replace(STANDARD["jpegls"], encode=lambda plane, effort: bytes(296)))
    with known(weight_file()):
        coded = encode_frame(words, fmt, threads=threads, prove=False, coders=("learned", "jpegls"))
    assert len(set(coded.lengths.values())) == 1
    assert coded.coder == "learned"
