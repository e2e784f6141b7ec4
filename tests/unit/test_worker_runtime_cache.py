"""The shared cache: content-addressed, checked, coalescing, bounded."""

from __future__ import annotations

import os
import threading
from hashlib import sha256
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.cache import Cache, request_key


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path, max_bytes=1000)


def test_what_was_stored_is_found_under_its_digest(cache: Cache, tmp_path: Path) -> None:
    key = request_key("original", "abc")
    stored = cache.store(key, b"pixels")
    assert stored.sha256 == sha256(b"pixels").hexdigest()
    assert (tmp_path / stored.path).read_bytes() == b"pixels"
    assert cache.find(key) == stored
    assert cache.find(request_key("original", "abd")) is None


def test_equal_bytes_of_two_requests_are_one_object(cache: Cache, tmp_path: Path) -> None:
    first = cache.store(request_key("a"), b"same")
    second = cache.store(request_key("b"), b"same")
    assert first == second
    assert len([path for path in (tmp_path / "objects").rglob("*") if path.is_file()]) == 1


@pytest.mark.parametrize("damage", [b"", b"pixelz", b"pixels and more"])
def test_damaged_object_is_dropped_and_never_found(cache: Cache, tmp_path: Path, damage: bytes) -> None:
    key = request_key("original", "abc")
    stored = cache.store(key, b"pixels")
    (tmp_path / stored.path).write_bytes(damage)
    assert cache.find(key) is None
    assert not (tmp_path / stored.path).exists()


@pytest.mark.parametrize("entry", [b"", b"[]", b"{}", b'{"sha256": 5}', b"\xff"])
def test_damaged_entry_means_not_cached(cache: Cache, tmp_path: Path, entry: bytes) -> None:
    key = request_key("original", "abc")
    cache.store(key, b"pixels")
    (tmp_path / "entries" / f"{key}.json").write_bytes(entry)
    assert cache.find(key) is None


def test_prune_drops_the_longest_unused_first(cache: Cache, tmp_path: Path) -> None:
    keys = [request_key(str(number)) for number in range(4)]
    for age, key in enumerate(keys):
        stored = cache.store(key, bytes([age]) * 400)
        os.utime(tmp_path / stored.path, (age, age))
    assert cache.find(keys[0]) is not None  # used again: now the youngest
    assert cache.prune() == 800
    assert [cache.find(key) is not None for key in keys] == [True, False, False, True]
    assert len(list((tmp_path / "entries").iterdir())) == 2
    assert cache.prune() == 0


def test_equal_requests_wait_for_one_another(cache: Cache) -> None:
    key, made = request_key("slow"), []

    def serve() -> None:
        with cache.locked(key):
            if cache.find(key) is None:
                made.append(1)
                cache.store(key, b"made once")

    threads = [threading.Thread(target=serve) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 1


@given(st.lists(st.text(), max_size=4), st.lists(st.text(), max_size=4))
def test_request_keys_are_unambiguous(left: list[str], right: list[str]) -> None:
    assert (request_key(*left) == request_key(*right)) == (left == right)
