"""The shared cache: content-addressed, checked, coalescing, bounded."""

from __future__ import annotations

import os
import threading
from hashlib import sha256
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.hotcache import HOT_KIND, Cache, cache_key


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path, max_bytes=1000)


def test_what_was_stored_is_found_under_its_digest(cache: Cache, tmp_path: Path) -> None:
    key = cache_key("abc", "original")
    stored = cache.store(key, b"pixels")
    assert stored.sha256 == sha256(b"pixels").hexdigest()
    assert (tmp_path / stored.path).read_bytes() == b"pixels"
    assert cache.find(key) == stored
    assert cache.find(cache_key("abd", "original")) is None


def test_equal_bytes_of_two_requests_are_one_object(cache: Cache, tmp_path: Path) -> None:
    first = cache.store(cache_key("1", "a"), b"same")
    second = cache.store(cache_key("1", "b"), b"same")
    assert first == second
    assert len([path for path in (tmp_path / "objects").rglob("*") if path.is_file()]) == 1


@pytest.mark.parametrize("damage", [b"", b"pixelz", b"pixels and more"])
def test_damaged_object_is_dropped_and_never_found(cache: Cache, tmp_path: Path, damage: bytes) -> None:
    key = cache_key("abc", "original")
    stored = cache.store(key, b"pixels")
    (tmp_path / stored.path).write_bytes(damage)
    assert cache.find(key) is None
    assert not (tmp_path / stored.path).exists()


@pytest.mark.parametrize("entry", [b"", b"[]", b"{}", b'{"sha256": 5}', b"\xff"])
def test_damaged_entry_means_not_cached(cache: Cache, tmp_path: Path, entry: bytes) -> None:
    key = cache_key("abc", "original")
    cache.store(key, b"pixels")
    (tmp_path / "entries" / f"{key}.json").write_bytes(entry)
    assert cache.find(key) is None


def test_prune_drops_the_longest_unused_first(cache: Cache, tmp_path: Path) -> None:
    keys = [cache_key("1", str(number)) for number in range(4)]
    for age, key in enumerate(keys):
        stored = cache.store(key, bytes([age]) * 400)
        os.utime(tmp_path / stored.path, (age, age))
    assert cache.find(keys[0]) is not None  # used again: now the youngest
    assert cache.prune() == 800
    assert [cache.find(key) is not None for key in keys] == [True, False, False, True]
    assert len(list((tmp_path / "entries").iterdir())) == 2
    assert cache.prune() == 0


def test_equal_requests_wait_for_one_another(cache: Cache) -> None:
    key, made = cache_key("1", "slow"), []

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


@given(st.tuples(st.text(), st.text()), st.tuples(st.text(), st.text()))
def test_keys_are_unambiguous(left: tuple[str, str], right: tuple[str, str]) -> None:
    assert (cache_key(*left) == cache_key(*right)) == (left == right)


def test_all_that_was_made_of_an_instance_is_dropped_and_nothing_else(cache: Cache, tmp_path: Path) -> None:
    kinds = ("original", HOT_KIND, "rendered:png:1:annotation=patient", "metadata")
    for digest in ("abc", "abd"):
        for kind in kinds:
            cache.store(cache_key(digest, kind), f"{digest} {kind}".encode())
    cache.drop_instances(["abc", "xyz"])
    left = [path.read_bytes() for path in (tmp_path / "objects").rglob("*") if path.is_file()]
    assert sorted(left) == sorted(f"abd {kind}".encode() for kind in kinds)
    assert all(cache.find(cache_key("abd", kind)) for kind in kinds)
    assert not any(cache.find(cache_key("abc", kind)) for kind in kinds)


def test_what_is_opened_was_compared_and_stays_open_when_pruned(cache: Cache, tmp_path: Path) -> None:
    key = cache_key("abc", HOT_KIND)
    stored = cache.store(key, b"pixels")
    found = cache.open(key)
    assert found is not None and found[1] == stored.sha256
    (tmp_path / stored.path).unlink()
    with found[0] as file:
        assert file.read() == b"pixels"
    assert cache.open(key) is None
