"""Two hosts that share PostgreSQL, Redis, a bucket and a volume; one of them vanishes in the middle of its work.

    sudo .venv/bin/python -m tests.acceptance.two_hosts [--instances 300]

Needs root and iproute2. A host is a network namespace with a cable of its own, and for each process a PID, mount, UTS
and IPC namespace. Both run listener, API, workers and sweep. Host b vanishes as at a power cut: its cable is pulled
first, so no peer is told, then everything on it is killed, while one of its processes holds the database's writer lock
and others hold rows. Senders whose host does not answer send again to the other one. Later b comes back, empty-handed.

At the end every acknowledged instance must be archived and given back equal through host a, and nothing may be left
over: exit 0 for 0 lost, 0 wrong, 0 stuck. The volume is one file system of this kernel, so this says nothing of NFS.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import boto3
import httpx
from pynetdicom import AE, _config

from gateway.bootstrap import Gateway, build
from gateway.broker import find_server_binary
from gateway.instance import State
from gateway.jobs import MemoryQueue
from gateway.settings import Settings, load_settings
from gateway.tokens import mint_token
from palimpsest.client import Route, WebClient
from palimpsest.scan import Found, inspect
from tests.object_makers import image, noisy
from tests.postgres import postgres_server
from tests.running import ROOT, free_port, warm_kernels

SERVICES = "10.77.0.1"
ADDRESS = {"a": "10.77.1.2", "b": "10.77.2.2"}
DICOM, HTTP = 11112, 8080
ANSWER_SECONDS = 45.0  # a sender's patience: above what a write waits for a lock that a dead host holds
WAIT_SECONDS = 900.0
ROOT_UID = "1.2.826.0.1.3680043.10.1.7"
PYTHON = sys.executable


def sh(command: str, *, check: bool = True) -> None:
    """Run a command line."""
    subprocess.run(command.split(), check=check, capture_output=True)


class Host:
    """One host: a network namespace, and processes that are gone at once when it is."""

    def __init__(self, name: str, work: Path, environment: dict[str, str]) -> None:
        self.name, self.address = name, ADDRESS[name]
        self._space, self._cable = f"palimpsest-{name}", f"palimp-{name}"
        self._local = work / f"local-{name}"
        self._local.mkdir()
        self._environment = environment | {"PALIMPSEST_LOCAL_DIR": str(self._local)}
        self.running: dict[str, subprocess.Popen[bytes]] = {}
        gateway = self.address.rsplit(".", 1)[0] + ".1"
        self.remove()
        sh(f"ip netns add {self._space}")
        sh(f"ip link add {self._cable} type veth peer name eth0 netns {self._space}")
        sh(f"ip addr add {gateway}/24 dev {self._cable}")
        sh(f"ip link set {self._cable} up")
        for command in (f"addr add {self.address}/24 dev eth0", "link set eth0 up", "link set lo up",
                        f"route add default via {gateway}"):  # fmt: skip
            sh(f"ip -n {self._space} {command}")

    def start(self, name: str, *command: str) -> None:
        """Start one process."""
        inside = f'hostname host-{self.name}; mount --make-rprivate /; mount -t proc proc /proc; exec "$@"'
        outside = ["ip", "netns", "exec", self._space, "unshare", "--mount", "--pid", "--fork", "--kill-child=SIGKILL",
                   "--uts", "--ipc", "--", "bash", "-euc", inside, "host"]  # fmt: skip
        with (self._local / f"{name}.log").open("ab") as log:
            self.running[name] = subprocess.Popen(
                [*outside, *command], stdout=log, stderr=log, env=self._environment, cwd=self._local
            )

    def start_all(self, *, retrieve: bool) -> None:
        """What a host runs."""
        self.start("listener", PYTHON, "-m", "service.listener")
        self.start("api", PYTHON, "-m", "service.api")
        self.start("encode", PYTHON, "-m", "worker.process", "--queues", "index,encode", "--name", "encode")
        if retrieve:
            self.start("retrieve", PYTHON, "-m", "worker.process", "--queues", "retrieve", "--name", "retrieve")
        self.start("sweep", PYTHON, "-m", "worker.sweep")

    def vanish(self) -> None:
        """Cable out, then power off."""
        sh(f"ip link set {self._cable} down")
        self.kill()

    def back(self) -> None:
        """Cable in; nothing runs yet."""
        sh(f"ip link set {self._cable} up")
        self.running = {}

    def kill(self) -> None:
        """SIGKILL everything."""
        for process in self.running.values():
            process.kill()
        for process in self.running.values():
            process.wait()

    def remove(self) -> None:
        """Take the namespace away."""
        sh(f"ip netns del {self._space}", check=False)
        sh(f"ip link del {self._cable}", check=False)

    def logs(self) -> str:
        """The end of each log."""
        files = sorted(self._local.glob("*.log"))
        return "\n".join(f"--- {self.name} {file.stem}\n{file.read_text('utf-8', 'replace')[-1500:]}" for file in files)


class Senders:
    """Modalities: C-STORE to one host, and again to the other one when it does not answer."""

    def __init__(self) -> None:
        self.answered: dict[Path, float] = {}  # file -> seconds until Success
        self.resent: set[Path] = set()
        self._lock = threading.Lock()

    def send(self, files: list[Found], first: str, other: str) -> None:
        """All files, one association after another; returns when every one was acknowledged."""
        _config.STORE_SEND_CHUNKED_DATASET = True
        where, association = first, None
        for found in files:
            began = time.monotonic()
            while True:
                if association is None or not association.is_established:
                    association = self._open(ADDRESS[where], found)
                status = None
                if association.is_established:
                    with suppress(RuntimeError, OSError):
                        status = association.send_c_store(found.path).get("Status")
                if status == 0:
                    break
                association.abort()
                association, where = None, other if where == first else first
                with self._lock:
                    self.resent.add(found.path)
            with self._lock:
                self.answered[found.path] = time.monotonic() - began
        if association is not None:
            association.release()

    @staticmethod
    def _open(address: str, found: Found) -> Any:
        entity = AE("MODALITY")
        entity.add_requested_context(found.head.sop_class_uid, found.head.transfer_syntax)
        entity.connection_timeout = entity.acse_timeout = 5
        entity.dimse_timeout = entity.network_timeout = ANSWER_SECONDS
        return entity.associate(address, DICOM, ae_title="PALIMPSEST")


def make_files(folder: Path, count: int) -> list[Found]:
    """Small CT slices of ten patients, each another image."""
    made = []
    folder.mkdir()
    for number in range(count):
        series = number % 10
        path = folder / f"{number:05d}.dcm"
        path.write_bytes(image(
            [noisy(128, 128, seed=number)], stored=12, SOPInstanceUID=f"{ROOT_UID}.{series}.1.{number}",
            StudyInstanceUID=f"{ROOT_UID}.{series}", SeriesInstanceUID=f"{ROOT_UID}.{series}.1",
            PatientID=f"TEST-{series}", InstanceNumber=str(number),
        ))  # fmt: skip
        found = inspect(path)
        assert isinstance(found, Found)
        made.append(found)
    return made


class Site:
    """Both hosts, what they share, and a view of it from outside."""

    def __init__(self, work: Path, values: dict[str, Any], environment: dict[str, str]) -> None:
        self.settings: Settings = load_settings(home=work / "home", local_dir=work / "local-outside", **values)
        self.gw: Gateway = build(self.settings, queue=MemoryQueue())
        self.hosts = {name: Host(name, work, environment) for name in ADDRESS}
        self.token = mint_token(self.gw, "clinician", "two-hosts")

    def states(self) -> Counter[str]:
        """Instances by state."""
        return Counter({str(state): count for state, count in self.gw.index.counts().by_state.items()})

    def archived(self) -> int:
        """How many are safe."""
        states = self.states()
        return states[State.ARCHIVED] + states[State.RELEASED]

    def wait(self, what: str, condition: Any) -> None:
        """Poll; exit with all logs if it takes too long."""
        deadline = time.monotonic() + WAIT_SECONDS
        while not condition():
            if time.monotonic() > deadline:
                sys.exit(f"{what}: not within {WAIT_SECONDS:g} s\n" + "\n".join(h.logs() for h in self.hosts.values()))
            time.sleep(0.05)

    def ready(self, host: str) -> bool:
        """The API of a host answers, and its listener, too."""
        try:
            with httpx.Client(timeout=2, trust_env=False) as http:
                return http.get(f"http://{ADDRESS[host]}:{HTTP}/readyz").status_code == 200
        except httpx.HTTPError:
            return False

    def rendered(self, host: str, found: Found) -> bool:
        """A rendered frame through that host's API, which only a retrieve worker can make."""
        uid = found.head.sop_instance_uid
        study = uid.rsplit(".", 2)[0]
        url = f"http://{ADDRESS[host]}:{HTTP}/dicomweb/studies/{study}/series/{study}.1/instances/{uid}/rendered"
        headers = {"Authorization": f"Bearer {self.token}", "Accept": "image/png"}
        answer = httpx.get(url, headers=headers, timeout=60, trust_env=False)
        return answer.status_code == 200 and answer.content.startswith(b"\x89PNG")

    def equal(self, host: str, found: Found) -> bool:
        """Given back through that host with the data set that was sent."""
        uid = found.head.sop_instance_uid
        study = uid.rsplit(".", 2)[0]
        client = WebClient(f"http://{ADDRESS[host]}:{HTTP}", self.token)
        try:
            with client.fetch_one(Route.uids(study, f"{study}.1", uid)) as got:
                back = inspect(got)
                return isinstance(back, Found) and back.dataset_digest == found.dataset_digest
        finally:
            client.close()


#: A process that dies in the middle of a write: it holds the lock that every writer of the site waits for.
HOLD = """
import os, sys, time
from gateway.database import Database
from gateway.settings import load_settings
database = Database(load_settings().database)
database.ping()
open(sys.argv[1] + "-ready", "w").close()
while not os.path.exists(sys.argv[1] + "-now"):
    time.sleep(0.01)
with database.write():
    open(sys.argv[1], "w").close()
    time.sleep(3600)
"""


def story(site: Site, files: list[Found], work: Path) -> dict[str, Any]:
    """Both work, b vanishes, a goes on, b comes back. Returns the figures."""
    a, b = site.hosts["a"], site.hosts["b"]
    a.start_all(retrieve=False)
    b.start_all(retrieve=True)
    site.wait("both hosts", lambda: site.ready("a") and site.ready("b"))
    third = len(files) // 3
    senders = Senders()
    parts = {"first": files[:third], "during": files[third : 2 * third], "after": files[2 * third :]}
    with ThreadPoolExecutor(4) as pool:
        for half, (first, other) in enumerate((("a", "b"), ("b", "a"))):
            pool.submit(senders.send, parts["first"][half::2], first, other)
    across = sum(site.rendered("a", found) for found in parts["first"][:10])
    a.start("retrieve", PYTHON, "-m", "worker.process", "--queues", "retrieve", "--name", "retrieve")
    held = work / "held"
    b.start("holder", PYTHON, "-c", HOLD, str(held))
    site.wait("the holder on host b", Path(f"{held}-ready").exists)
    with ThreadPoolExecutor(4) as pool:
        running = [pool.submit(senders.send, parts["during"][half::4], *(("a", "b") if half % 2 else ("b", "a")))
                   for half in range(4)]  # fmt: skip
        site.wait("some of the second part", lambda: len(senders.answered) > third + third // 4)
        Path(f"{held}-now").touch()
        site.wait("the writer's lock on host b", held.exists)
        leased = sum(each.owner.startswith("encode") for each in site.gw.index.leases())
        left = len(files[: 2 * third]) - site.archived()
        b.vanish()
        vanished = time.monotonic()
        for each in running:
            each.result()
    acknowledged = time.monotonic() - vanished
    site.wait("archived by host a alone", lambda: site.archived() >= 2 * third)
    recovered = time.monotonic() - vanished
    b.back()
    b.start_all(retrieve=True)
    site.wait("host b back", lambda: site.ready("b"))
    with ThreadPoolExecutor(2) as pool:
        for half, (first, other) in enumerate((("a", "b"), ("b", "a"))):
            pool.submit(senders.send, parts["after"][half::2], first, other)
    site.wait("all archived", lambda: site.archived() >= len(files))
    return {
        "instances": len(files), "acknowledged": len(senders.answered), "sent_again": len(senders.resent),
        "rendered_by_the_other_host": across, "rows_leased_when_b_vanished": leased, "unfinished_when_b_vanished": left,
        "all_acknowledged_s": round(acknowledged, 1), "all_archived_s": round(recovered, 1),
        "answer_p50_ms": round(1000 * statistics.median(senders.answered.values()), 1),
        "answer_max_of_the_host_that_lived_s": round(
            max(seconds for path, seconds in senders.answered.items() if path not in senders.resent), 1
        ),
        "answer_max_s": round(max(senders.answered.values()), 1),
    }  # fmt: skip


def judge(site: Site, files: list[Found], figures: dict[str, Any]) -> bool:
    """Every instance through host a; the figures are printed. True if nothing is lost, wrong or stuck."""
    states = site.states()
    with ThreadPoolExecutor(4) as pool:
        equal = sum(pool.map(lambda found: site.equal("a", found), files))
    finished = states[State.ARCHIVED] + states[State.RELEASED]
    figures |= {
        "lost": len(files) - sum(states.values()), "wrong": len(files) - equal,
        "stuck": sum(states.values()) - finished, "outbox": site.gw.index.counts().outbox,
        "states": dict(states), "in_the_bucket": sum(1 for _ in site.gw.archive.keys()),  # noqa: SIM118 - no mapping
        "on_the_volume": sum(1 for _ in site.settings.archive_dir.rglob("*.dcm")),
    }  # fmt: skip
    print(json.dumps(figures, indent=1))
    return not any(figures[name] for name in ("lost", "wrong", "stuck", "on_the_volume"))


def shared(stack: ExitStack, work: Path) -> dict[str, Any]:
    """PostgreSQL, Redis and S3 on an address of their own; the settings that name them."""
    sh(f"ip addr add {SERVICES}/32 dev lo", check=False)
    stack.callback(sh, f"ip addr del {SERVICES}/32 dev lo", check=False)
    database, redis, s3 = free_port(), free_port(), free_port()
    stack.enter_context(postgres_server(SERVICES, database))
    broker = [str(find_server_binary()), "--port", str(redis), "--bind", SERVICES, "--protected-mode", "no"]
    commands = (
        [*broker, "--save", "", "--dir", str(work)],
        [PYTHON, "-m", "moto.server", "-H", SERVICES, "-p", str(s3)],
    )
    for command in commands:
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        stack.callback(process.wait)
        stack.callback(process.kill)
    endpoint = f"http://{SERVICES}:{s3}"
    client = boto3.client("s3", endpoint_url=endpoint, region_name="us-east-1")
    for _ in range(100):
        with suppress(Exception):  # it is not up yet  # noqa: BLE001
            client.create_bucket(Bucket="images")
            break
        time.sleep(0.2)
    return {
        "database_url": f"postgresql://postgres@{SERVICES}:{database}/postgres",
        "redis_url": f"redis://{SERVICES}:{redis}/0", "watermark_bytes": 0,
        "archive_s3": {"bucket": "images", "prefix": "archive/", "region": "us-east-1", "endpoint_url": endpoint,
                       "allow_http": True},
    }  # fmt: skip


def main() -> None:
    """Set the scene, tell the story, judge."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--instances", type=int, default=300)
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that what was started ends with us
    os.environ |= {
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    warm_kernels()
    with ExitStack() as stack:
        work = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="palimpsest-hosts-", dir="/var/tmp")))
        values = shared(stack, work)
        environment = os.environ | {
            "PALIMPSEST_HOME": str(work / "home"), "DATABASE_URL": values["database_url"],
            "REDIS_URL": values["redis_url"], "PALIMPSEST_ARCHIVE_S3": json.dumps(values["archive_s3"]),
            "PALIMPSEST_WATERMARK_BYTES": "0", "PALIMPSEST_DICOM_HOST": "0.0.0.0", "PALIMPSEST_HTTP_HOST": "0.0.0.0",
            "PALIMPSEST_PROFILE": "demo", "PYTHONPATH": str(ROOT),
        }  # fmt: skip
        files = make_files(work / "files", arguments.instances)
        site = Site(work, values, environment)
        for host in site.hosts.values():
            stack.callback(host.remove)
            stack.callback(host.kill)
        good = judge(site, files, story(site, files, work))
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    main()
