"""Geometry, constants and tables of the learned local path (law 2)."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import config, njit
from numpy.typing import NDArray

from codec.tables import LOGISTIC, TAPS, Z_LAST, Z_LIMIT, Z_STEPS


def _compiler(**options: Any) -> Any:
    """A decorator like numba.njit that caches only in a folder that was named for it.

    numba compares a kernel's own file and not those that it takes constants and other kernels from: one folder for all
    versions of the sources (beside them, by default) would give old kernels. gateway.settings names one for each.
    """
    make: Any = njit
    known: Any = config  # numba's settings have no types
    return make(nogil=True, cache=bool(known.CACHE_DIR), error_model="numpy", **options)


outer = _compiler()
# Kernels that hand arrays around without counting references (a quarter of the time otherwise), and so allocate none.
bare = _compiler(_nrt=False)
inner = _compiler(_nrt=False, forceinline=True, no_cpython_wrapper=True, no_cfunc_wrapper=True)

# The wavefront: lane l codes rows l, l + 16, ...; it is SKEW steps behind lane l - 1.
SKEW = 5
SHORTEST = 80  # steps between a lane's rows, at least: 16 SKEW, so that lane 0 follows lane 15
GAP = 9  # steps between the end of a row and the start of the lane's next: 4 right of it, 5 left of the other

# Samples: a buffer of LEVEL_STEPS steps of LEVEL_STRIDE int32, lane 0 at LEVEL_FIRST, before it the rows above.
LEVEL_STRIDE, LEVEL_FIRST, LEVEL_ABOVE = 32, 16, 4
LEVEL_KEPT, LEVEL_STEPS = 28, 100  # when the buffer is full its last LEVEL_KEPT steps move to the front
# Errors: a ring of ERROR_STEPS steps of SLOTS slots of ERROR_STRIDE int32.
ERROR_STRIDE, ERROR_FIRST, ERROR_ABOVE, ERROR_STEPS = 20, 4, 2, 16
PREDICTORS, BLEND, SIGNED, SLOTS = 14, 14, 15, 16
ERROR_CAP, NEAR_CAP, DISTANCE_CAP = 1 << 20, 1 << 23, 1 << 22

FRACTION = 6
INPUT_LIMIT, OFFSET_LIMIT = 1023, 1023
MOST_INPUTS, MOST_HIDDEN, MOST_COMPONENTS = 256, 512, 5  # MOST_HIDDEN: both layers together
HEAD_LIMIT = 2047 << 16
MOST_SETS = 16

# Planes known in advance (G, the previous frame): steps of AROUND_STRIDE int32, lanes -1..16 from AROUND_FIRST - 1 on.
AROUND_STRIDE, AROUND_FIRST, AROUND_STEPS = 20, 2, SKEW + 1  # AROUND_STEPS: steps before the first and after the last

# The 25 neighbours that the network sees.
SEEN = tuple((0, x) for x in (-1, -2, -3)) + tuple(
    (-y, x) for y, reach in ((1, 3), (2, 3), (3, 2), (4, 1)) for x in range(-reach, reach + 1)
)


def level_offset(dy: int, dx: int) -> int:
    """Where the neighbour at (dy, dx) lies in the samples' buffer, relative to the sample."""
    return (dx + SKEW * dy) * LEVEL_STRIDE + dy


SEEN_OFFSETS = np.array([level_offset(dy, dx) for dy, dx in SEEN], np.int64)
TAP_OFFSETS = np.array([level_offset(dy, dx) for dy, dx in TAPS], np.int64)

# The network's inputs, in this order; a network that takes fewer ignores the last ones. CONTEXT_INPUTS: one is 0.
OWN_INPUTS, CONTEXT_INPUTS, UPPER_INPUTS, PREVIOUS_INPUTS = len(SEEN) + 2 * PREDICTORS + 9, 6, 6, 15
FIRST_UPPER = OWN_INPUTS + CONTEXT_INPUTS
FIRST_PREVIOUS = FIRST_UPPER + UPPER_INPUTS

SCALES = 400  # scales 2^(q/16) / 64 levels, q = 0..SCALES - 1
SCALE_BIAS = -8  # the widths that the network says nothing of, against s0, in 1/16 octave
Z_SHIFT = 13
Z_PLACE = Z_LIMIT * Z_STEPS << 8
Z_END = Z_LAST << 8
MASS_SHIFT = 17
SCALE_BITS = 52
SLOT_SHIFT = 24


def real_inverse(q: int) -> float:
    """2^20 over the scale 2^(q/16) / 64."""
    return float(1 << 26) / math.pow(2.0, q / 16)


def _inverse() -> NDArray[np.int32]:
    return np.array([math.floor(real_inverse(q) + 0.5) for q in range(SCALES)], np.int32)


INVERSE = _inverse()
# Beyond this many 1/64 levels from the centre the law is flat; so the product with INVERSE fits 32 bits.
REACH = ((np.int64(Z_PLACE) << Z_SHIFT) // INVERSE + 1).astype(np.int32)
RISE = LOGISTIC[: Z_LAST + 1].astype(np.int32)
SLOPE = np.append(np.diff(LOGISTIC[: Z_LAST + 1]), 0).astype(np.int32)
LEAST_MASS, MOST_MASS = int(LOGISTIC[0]), int(LOGISTIC[Z_LAST])
