"""Worker processes as they run: the reserved retriever, a wiped queue, children that do not outlive their parent."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from hashlib import sha256
from pathlib import Path
from shutil import copyfile

import psutil
import pytest
import redis
from pydicom.data import get_testdata_file

from gateway.accept import accept_instance
from gateway.index import RECODE_TASK
from tests.running import Rig, alive, until

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    with Rig(tmp_path_factory.mktemp("rig") / "home", lease_seconds=6.0) as made:
        made.start("broker")
        made.wait("broker", made.broker_answers)
        made.start("encode", "retrieve", "sweep")
        yield made


def take_in(rig: Rig, name: str) -> int:
    incoming = rig.gw.spool.incoming()
    copyfile(str(get_testdata_file(name, download=False)), incoming)
    return accept_instance(rig.gw, incoming, source="stow", calling_ae="TEST").row.id


def is_released(rig: Rig, instance_id: int) -> bool:
    return rig.gw.index.get(instance_id).state == "RELEASED"


@contextmanager
def frozen(rig: Rig, name: str) -> Iterator[None]:
    """The process and all it started stand still."""
    processes = [psutil.Process(rig.pid(name)), *psutil.Process(rig.pid(name)).children(recursive=True)]
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.suspend()
    try:
        yield
    finally:
        for process in processes:
            with suppress(psutil.NoSuchProcess):
                process.resume()


def test_an_object_walks_from_receipt_to_release_without_anyones_help(rig: Rig) -> None:
    instance_id = take_in(rig, "CT_small.dcm")
    rig.wait("released", lambda: is_released(rig, instance_id))
    row = rig.gw.index.get(instance_id)
    assert (row.form, row.modality, row.attempts) == ("CODED", "CT", 1)
    assert rig.gw.index.alerts() == []


def test_retrieval_answers_while_every_encoder_stands_still(rig: Rig) -> None:
    released = take_in(rig, "CT_small.dcm")
    rig.wait("released", lambda: is_released(rig, released))
    with frozen(rig, "encode"):
        waiting = take_in(rig, "MR_small.dcm")
        for instance_id, name in ((released, "CT_small.dcm"), (waiting, "MR_small.dcm")):
            reply = rig.gw.queue.call("palimpsest.retrieve", [instance_id, "original"], "retrieve", 120.0)
            data = (rig.settings.cache_dir / reply["path"]).read_bytes()
            assert data == Path(str(get_testdata_file(name, download=False))).read_bytes()
            assert sha256(data).hexdigest() == reply["sha256"]
    rig.wait("released", lambda: is_released(rig, waiting))


STUCK = """
import time, worker.process, worker.recode
worker.recode._made = lambda *_: time.sleep(600)
worker.process.main(["--queues", "gpu", "--name", "stuck"])
"""


def test_a_worker_that_is_stopped_over_coding_anew_takes_the_try_back_before_it_is_killed(rig: Rig) -> None:
    """SIGTERM lets a task end; what takes longer is killed by the supervisor, which is no fault of the object."""
    instance_id = take_in(rig, "CT_small.dcm")
    rig.wait("released", lambda: is_released(rig, instance_id))

    def tries() -> tuple[int, bool]:
        row = rig.gw.index.get(instance_id)
        return row.attempts, "stuck" in (row.lease_owner or "")

    rig._commands["stuck"] = (sys.executable, "-c", STUCK)
    with frozen(rig, "encode"):
        rig.gw.index.recode_want(instance_id)
        rig.start("stuck")
        rig.gw.queue.send(RECODE_TASK, [instance_id], "gpu", 0)
        rig.wait("claimed", lambda: tries() == (1, True))
        os.kill(rig.pid("stuck"), signal.SIGTERM)
        rig.wait("taken back", lambda: tries() == (0, True))
        rig.kill9("stuck")
        rig.children.pop("stuck").stop()
    rig.wait("coded anew by another", lambda: rig.gw.index.get(instance_id).recode_at is None)
    assert rig.gw.index.alerts() == []


def test_a_problem_comes_back_as_one(rig: Rig) -> None:
    reply = rig.gw.queue.call("palimpsest.retrieve", [987654, "original"], "retrieve", 120.0)
    assert (reply["error"], reply["status"]) == ("unknown-instance", 404)


def test_a_wiped_queue_loses_nothing(rig: Rig) -> None:
    with frozen(rig, "encode"), redis.Redis(unix_socket_path=str(rig.settings.redis_socket)) as client:
        ids = [take_in(rig, name) for name in ("rtplan.dcm", "rtdose.dcm", "SC_rgb_small_odd.dcm")]
        client.flushall()
    rig.wait("all released", lambda: all(is_released(rig, instance_id) for instance_id in ids))


def test_a_killed_pool_child_is_replaced_and_its_work_done_again(rig: Rig) -> None:
    children = psutil.Process(rig.pid("encode")).children()
    instance_id = take_in(rig, "test-SR.dcm")
    for child in children:
        with suppress(psutil.NoSuchProcess):
            child.kill()
    rig.wait("released", lambda: is_released(rig, instance_id))
    assert not any(map(alive, children))


def test_no_child_outlives_a_killed_worker(rig: Rig) -> None:
    worker = psutil.Process(rig.pid("encode"))
    assert until(lambda: len(worker.children(recursive=True)) >= 2)  # those killed before are started again
    offspring = worker.children(recursive=True)
    rig.kill9("encode")
    rig.wait("all gone", lambda: not any(map(alive, offspring)))
