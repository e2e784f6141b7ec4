"""An index on an empty database of each kind, with a clock that a test turns."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from gateway.index import Index
from tests.fakes import FakeClock


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def index(database_url: str, clock: FakeClock) -> Iterator[Index]:
    made = Index(database_url, clock=clock)
    made.create()
    yield made
    made.close()
