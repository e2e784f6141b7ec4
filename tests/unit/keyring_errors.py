"""What the key ring refuses, and how: for its tests."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from gateway.errors import PolicyRefused, Unavailable


@contextmanager
def refused(reason: str) -> Iterator[pytest.ExceptionInfo[PolicyRefused]]:
    with pytest.raises(PolicyRefused) as caught:
        yield caught
    assert caught.value.reason == reason


@contextmanager
def unavailable(reason: str) -> Iterator[pytest.ExceptionInfo[Unavailable]]:
    with pytest.raises(Unavailable) as caught:
        yield caught
    assert caught.value.reason == reason
