"""The hot cache: filled behind the readers, found by the service without the worker, made once for many readers."""

from __future__ import annotations

import io
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pydicom
import pytest
from fastapi.testclient import TestClient

from gateway.bootstrap import Gateway, build
from gateway.hotcache import HOT_KIND, cache_key, cache_of
from gateway.instance import State
from gateway.settings import load_settings
from gateway.tokens import mint_token
from gateway.transfer_syntaxes import HTJ2K_RPCL
from service.api import create_app
from tests import viewer_studies
from tests.fakes import NoStego
from tests.integration.test_service_wado import Working, get, parts, path_of, take_in
from tests.object_makers import packaged
from tests.proving import InProcess
from worker import prefetch, retrieve
from worker.delivery import forward_instance
from worker.pipeline import process_instance
from worker.prefetch import ALL, arrived, warm
from worker.sweep import release_spool

pytestmark = [pytest.mark.integration, pytest.mark.filterwarnings("ignore::UserWarning")]
ANY = 'multipart/related; type="application/octet-stream"; transfer-syntax=*'


def gateway_at(home: Path, **settings: Any) -> Gateway:
    queue = Working()
    queue.gateway = build(load_settings(home=home, watermark_bytes=1, **settings), queue=queue)
    return queue.gateway


def asked(gateway: Gateway) -> list[str]:
    assert isinstance(gateway.queue, Working)
    return gateway.queue.asked


def waiting(gateway: Gateway) -> list[tuple[str, tuple[int | str, ...]]]:
    """What the retrieve queue holds, taken off it."""
    assert isinstance(gateway.queue, Working)
    found = []
    while (message := gateway.queue.pop("retrieve")) is not None:
        found.append(message)
    return found


@pytest.fixture
def gateway(tmp_path: Path) -> Iterator[Gateway]:
    made = gateway_at(tmp_path / "home")
    yield made
    made.close()


@pytest.fixture
def web(gateway: Gateway) -> Iterator[TestClient]:
    headers = {"Authorization": f"Bearer {mint_token(gateway, 'clinician', 'test')}"}
    with TestClient(create_app(gateway), raise_server_exceptions=False, headers=headers) as client:
        yield client


def release(gateway: Gateway, instance_id: int) -> None:
    process_instance(gateway, InProcess(gateway.keys), instance_id, "test-1")  # type: ignore[arg-type]
    for row in gateway.index.forwards(instance_id):
        forward_instance(gateway, row.id, "test-1", NoStego())
    assert release_spool(gateway) == 1
    assert gateway.index.get(instance_id).state is State.RELEASED


def is_hot(gateway: Gateway, instance_id: int) -> bool:
    return cache_of(gateway.settings).find(cache_key(gateway.index.get(instance_id).digest, HOT_KIND)) is not None


def test_a_warm_frame_is_given_without_the_worker(web: TestClient, gateway: Gateway) -> None:
    data = packaged("CT_small.dcm")
    ds = take_in(gateway, data)
    cold = get(web, path_of(ds) + "/frames/1", ANY)
    assert parts(cold)[0][1] == ds.PixelData and asked(gateway) == []  # from the spool, as it is
    release(gateway, 1)
    assert warm(gateway, 1, 0) == {"made": HOT_KIND}
    before = list(asked(gateway))
    headers, frame = parts(get(web, path_of(ds) + "/frames/1", ANY))[0]
    assert headers["content-type"] == f"application/octet-stream;transfer-syntax={HTJ2K_RPCL}"
    assert asked(gateway) == before
    assert (imagecodecs.htj2k_decode(frame) == pydicom.dcmread(io.BytesIO(data)).pixel_array).all()
    original = get(web, path_of(ds), "application/dicom; transfer-syntax=*")
    assert original.content == data  # of an object, * is as received


def test_a_copy_made_later_is_found_by_a_reader_who_had_none(web: TestClient, gateway: Gateway) -> None:
    ds = take_in(gateway, packaged("CT_small.dcm"))
    frames = [parts(get(web, path_of(ds) + "/frames/1", ANY))[0]]
    warm(gateway, 1, 0)
    frames += [parts(get(web, path_of(ds) + "/frames/1", ANY))[0] for _ in range(2)]
    assert [HTJ2K_RPCL in headers["content-type"] for headers, _ in frames] == [False, True, True]
    assert frames[1][1] == frames[2][1] and asked(gateway) == []


def test_a_damaged_copy_is_made_again_and_never_sent(web: TestClient, gateway: Gateway) -> None:
    ds = take_in(gateway, packaged("CT_small.dcm"))
    path, syntax = path_of(ds), f"application/dicom; transfer-syntax={HTJ2K_RPCL}"
    good = get(web, path, syntax).content
    entry = cache_of(gateway.settings).find(cache_key(gateway.index.get(1).digest, HOT_KIND))
    assert entry is not None
    (gateway.settings.cache_dir / entry.path).write_bytes(good[:-1] + b"\0\0")
    assert get(web, path, syntax).content == good
    assert asked(gateway) == [HOT_KIND, HOT_KIND]
    assert get(web, path, syntax).content == good
    assert asked(gateway) == [HOT_KIND, HOT_KIND]


def test_the_first_frame_read_of_a_series_has_the_rest_made_behind_it(web: TestClient, gateway: Gateway) -> None:
    series = [take_in(gateway, data) for data in viewer_studies.ct_series(4)]
    for ds in (series[2], series[2], series[0]):
        assert get(web, path_of(ds) + "/frames/1", ANY).status_code == 200
    sent = waiting(gateway)
    assert sent == [("palimpsest.warm", (3, ALL))]
    order = []
    while sent:
        [(_, (number, left))] = sent
        warm(gateway, int(number), int(left))
        order.append(number)
        sent = waiting(gateway)
    assert order == [3, 4, 1, 2]
    assert all(is_hot(gateway, number) for number in order)


def test_reading_ahead_is_bounded_and_given_up_when_readers_wait(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gateway = gateway_at(tmp_path / "home", prefetch_instances=1, hot_object_bytes=140_000)
    for data in (*viewer_studies.ct_series(3), viewer_studies.multiframe()):
        take_in(gateway, data)
    warm(gateway, 1, ALL)
    assert waiting(gateway) == [("palimpsest.warm", (2, 1))]
    warm(gateway, 2, 1)
    assert waiting(gateway) == []
    assert warm(gateway, 4, 0) == {"made": ""}  # too large
    monkeypatch.setattr(prefetch, "MOST_WAITING", -1)
    warm(gateway, 1, ALL)
    arrived(gateway, [1])
    assert waiting(gateway) == []
    gateway.queue.down = True  # type: ignore[attr-defined]
    arrived(gateway, [1])  # a broker that is away is nobody's trouble
    gateway.close()


def test_what_arrives_is_made_ready_unless_that_is_not_wanted(gateway: Gateway, tmp_path: Path) -> None:
    arrived(gateway, [5, 6])
    assert waiting(gateway) == [("palimpsest.warm", (5, 0)), ("palimpsest.warm", (6, 0))]
    other = gateway_at(tmp_path / "other", hot_cache="touch")
    arrived(other, [5])
    assert waiting(other) == []
    other.close()


@pytest.mark.parametrize("name", ["examples_ybr_color.dcm", "test-SR.dcm"])
def test_what_has_no_lossless_copy_is_kept_as_it_is_once_it_is_in_the_archive_only(gateway: Gateway, name: str) -> None:
    take_in(gateway, packaged(name))
    assert warm(gateway, 1, 0)["made"] in ("", HOT_KIND)
    release(gateway, 1)
    cache_of(gateway.settings).drop_instances([gateway.index.get(1).digest])
    assert warm(gateway, 1, 0)["made"] in ("original", HOT_KIND)


def test_twenty_readers_are_one_restore_and_one_transcoding(
    web: TestClient, gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    ds = take_in(gateway, packaged("CT_small.dcm"))
    release(gateway, 1)
    made: list[str] = []
    for name in ("rebuild", "write_transcoded"):
        real = getattr(retrieve, name)
        monkeypatch.setattr(retrieve, name, lambda *a, name=name, real=real: made.append(name) or real(*a))
    accept = f'multipart/related; type="image/jphc"; transfer-syntax={HTJ2K_RPCL}'
    with ThreadPoolExecutor(20) as readers:
        answers = list(readers.map(lambda _: get(web, path_of(ds) + "/frames/1", accept), range(20)))
    assert {answer.status_code for answer in answers} == {200}
    assert len({parts(answer)[0][1] for answer in answers}) == 1
    assert sorted(made) == ["rebuild", "write_transcoded"]


def test_generated_slices_are_what_the_viewer_test_believes() -> None:
    first = pydicom.dcmread(io.BytesIO(viewer_studies.ct_series(3)[1]))
    assert np.mean(first.pixel_array[100:110, 170:180]) > -100  # the ball, in the lung
