"""How much a fit does: numbers of steps out of the seconds asked for, at nominal speeds; the clock only guards."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Final

#: seconds that the work takes on one core of a server of 2023 with a neighbour on its other thread, by sample: inputs
#: of it gathered, its cost counted, a step of gradient descent by sample and by (weights of the network + MIXTURE)
GATHERED, COUNTED, STEPPED = 150e-9, 220e-9, 0.18e-9
MIXTURE: Final = 2500  # weights that a sample's mixture takes as long as
#: of the seconds asked for that much is planned: a machine half as fast, or twice as busy, still does all of it
PLANNED: Final = 0.5
BATCH: Final = 2048  # samples of a step
MOST_CODE, MOST_DELTAS = 60, 400  # steps after which hardly anything is gained (docs/codec-experiments.md)
LEAST_CODE, LEAST_DELTAS = 30, 60  # with fewer a fit is not worth its bytes
COUNTS: Final = 4  # candidates whose cost is counted: none, centre, code, deltas


@dataclass
class Pace:
    """Steps of a fit, and when it must end whatever is left of them. `cut`: whether the clock took steps away."""

    code: int
    deltas: int
    deadline: float  # of time.monotonic
    cut: bool = False

    @staticmethod
    def of(seconds: float, started: float, seen: int, judged: int, weights: int) -> Pace:
        """For `seconds` since `started` (time.monotonic). seen, judged: samples gathered, and those of each count;
        weights: of the network's matrices."""
        left = PLANNED * seconds - GATHERED * seen - COUNTS * COUNTED * judged
        each = STEPPED * BATCH * (weights + MIXTURE)
        code = _steps(left, each, LEAST_CODE, MOST_CODE)
        deltas = _steps(left - code * each, each, LEAST_DELTAS, MOST_DELTAS)
        return Pace(code, deltas, started + seconds)

    def late(self) -> bool:
        """Whether the time is over; what asks has steps left, so they are cut."""
        over = time.monotonic() >= self.deadline
        self.cut = self.cut or over
        return over


def _steps(left: float, each: float, least: int, most: int) -> int:
    """How many steps of `each` seconds the rest leaves room for: 0 or least..most."""
    steps = min(most, int(left / each))
    return steps if steps >= least else 0
