"""A CUDA device for the tests marked `gpu`: skipped where there is none, or failed if one was asked for."""

from __future__ import annotations

import os

import pytest

from codec.gpu import Device, NoDevice, open_device

REQUIRED = os.environ.get("PALIMPSEST_REQUIRE_GPU") == "1"  # read now: tests see no PALIMPSEST_ settings


@pytest.fixture(scope="session")
def device() -> Device:
    """Device 0."""
    try:
        return open_device(0)
    except NoDevice as error:
        if REQUIRED:
            pytest.fail(str(error))
        pytest.skip(str(error))
