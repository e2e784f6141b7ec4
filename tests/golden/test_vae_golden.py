"""The frozen stack of the global path: both decoders must give the frozen planes and payload, in every release."""

from __future__ import annotations

import numpy as np
import pytest

from codec.bitsback import BitsBack
from codec.groupstack import Opener, decode_stack
from codec.plainstack import PlainStack
from tests.golden.make_vae_vectors import FILE, INITIAL, planes


@pytest.mark.parametrize("opener", [BitsBack, PlainStack])
def test_stack_gives_the_frozen_planes_and_initial_bits(opener: Opener) -> None:
    wanted, shapes = planes()
    found, initial = decode_stack(FILE.read_bytes(), shapes, opener)
    assert all(np.array_equal(one, other) for one, other in zip(found, wanted, strict=True))
    assert initial[: len(INITIAL)] == INITIAL[: len(initial)] and len(initial) >= 40
