"""The broker elsewhere: over TLS, and behind Sentinel through a failover; Celery and redis-py, with real servers."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import redis

from gateway.broker import find_server_binary
from gateway.errors import Unavailable
from gateway.jobs import ENCODE_TASK, RETRIEVE_TASK, CeleryQueue
from gateway.redis_link import RedisLink
from gateway.settings import Settings, load_settings, python_environment
from tests.certificates import Authority, Identity
from tests.running import ROOT, free_port

pytestmark = pytest.mark.integration

PASSWORD, SENTINEL_PASSWORD = "of the server/@:", "of-the-sentinels"
SECRETS = {"redis_password": PASSWORD, "redis_sentinel_password": SENTINEL_PASSWORD}


class Servers:
    """Processes of one test, ended with it."""

    def __init__(self, folder: Path, binary: str) -> None:
        self.folder, self.binary = folder, binary
        self.running: list[subprocess.Popen[bytes]] = []

    def start(self, name: str, port: int, config: str, *, tls: Identity | None = None, ca: Path | None = None) -> None:
        """A server of that configuration (redis.conf), on 127.0.0.1."""
        folder = self.folder / name
        folder.mkdir()
        lines = [f"dir {folder}", "bind 127.0.0.1", "protected-mode no", f"{'tls-port' if tls else 'port'} {port}"]
        if tls:
            lines += ["port 0", f"tls-cert-file {tls.certificate}", f"tls-key-file {tls.key}", f"tls-ca-cert-file {ca}"]
            lines += ["tls-auth-clients yes", "tls-replication yes"]
        file = folder / "server.conf"
        file.write_text("\n".join([*lines, config, ""]))
        command = [self.binary, str(file), *(["--sentinel"] if "sentinel monitor" in config else ["--save", ""])]
        self.running.append(subprocess.Popen(command, stdout=subprocess.DEVNULL))

    def kill(self, number: int) -> None:
        """SIGKILL one, in the order of their starts."""
        self.running[number].kill()
        self.running[number].wait()


@pytest.fixture
def servers(tmp_path: Path) -> Iterator[Callable[[str], Servers]]:
    with ExitStack() as stack:

        def make(binary: str) -> Servers:
            made = Servers(tmp_path, binary)
            stack.callback(lambda: [child.kill() or child.wait() for child in made.running])
            return made

        yield make


def until(condition: Callable[[], bool], seconds: float = 120) -> None:
    """Wait for it; what is asked may fail with an error of ours or of redis-py meanwhile."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            if condition():
                return
        except (Unavailable, redis.RedisError):
            pass
        time.sleep(0.05)
    raise AssertionError("it never came true")


def serve(settings: Settings, trace: Path, environment: dict[str, str], servers: Servers) -> None:
    """A Celery worker in a process of its own, which gets the address and the passwords as any process would."""
    command = [sys.executable, str(ROOT / "tests/contract/queue_worker.py"), str(settings.home), str(trace)]
    env = python_environment(ROOT) | environment
    servers.running.append(subprocess.Popen(command, cwd=ROOT, env=env, stderr=subprocess.DEVNULL))


def as_environment(values: dict[str, object]) -> dict[str, str]:
    return {f"PALIMPSEST_{name.upper()}": str(value) for name, value in values.items()}


def test_sentinel_names_the_master_and_after_a_failover_the_next_one(
    tmp_path: Path, servers: Callable[[str], Servers]
) -> None:
    made = servers(str(find_server_binary()))
    first, second, sentinel = free_port(), free_port(), free_port()
    login = f'requirepass "{PASSWORD}"\nmasterauth "{PASSWORD}"'
    made.start("first", first, login)
    made.start("second", second, f"{login}\nreplicaof 127.0.0.1 {first}\nrepl-diskless-sync-delay 0")
    with redis.Redis(
        port=first, password=PASSWORD
    ) as master:  # Sentinel looks for replicas at its start, then each 10 s
        until(lambda: master.info("replication")["connected_slaves"] == 1)
    watch = ("down-after-milliseconds palimpsest 2000", "failover-timeout palimpsest 4000",
             f'auth-pass palimpsest "{PASSWORD}"')  # fmt: skip
    lines = [f"sentinel monitor palimpsest 127.0.0.1 {first} 1", *(f"sentinel {line}" for line in watch)]
    made.start("sentinel", sentinel, "\n".join([*lines, f"requirepass {SENTINEL_PASSWORD}"]))
    values: dict[str, object] = {
        "redis_url": f"sentinel://127.0.0.1:{free_port()},127.0.0.1:{sentinel}/3",  # the first one is down
        "redis_sentinel_master": "palimpsest", **SECRETS,
    }  # fmt: skip
    settings = load_settings(home=tmp_path / "home", **values)
    queue, client = CeleryQueue(settings), RedisLink.of(settings).client()
    trace = tmp_path / "trace"
    serve(settings, trace, as_environment(values), made)
    until(lambda: bool(client.ping()))  # a Sentinel that has just started names nobody for a moment
    assert queue.call(RETRIEVE_TASK, [7, "original"], "retrieve", 120) == {"number": 7, "kind": "original"}
    queue.send(ENCODE_TASK, [1], "encode")
    until(lambda: trace.exists() and "1" in trace.read_text().split())

    made.kill(0)
    until(lambda: client.info("server")["tcp_port"] == second and client.info("replication")["role"] == "master")
    until(lambda: queue.send(ENCODE_TASK, [2], "encode") is None)
    until(lambda: "2" in trace.read_text().split())  # by the same worker, which found the new master by itself
    queue.close()
    client.close()


@pytest.mark.peers
@pytest.mark.parametrize("scheme", ["rediss", "sentinels"])
def test_tls_with_client_certificates(tmp_path: Path, servers: Callable[[str], Servers], scheme: str) -> None:
    binary = shutil.which("redis-server")
    if binary is None:
        if os.environ.get("PALIMPSEST_REQUIRE_PEERS"):
            pytest.fail("no redis-server: apt-get install redis-server")
        pytest.skip("no redis-server")
    made, authority = servers(binary), Authority(tmp_path)
    server, ours, port = authority.issue("broker"), authority.issue("gateway"), free_port()
    made.start("server", port, f'requirepass "{PASSWORD}"', tls=server, ca=authority.file)
    values: dict[str, object] = {
        "redis_url": f"{scheme}://127.0.0.1:{port}/2", "redis_ca_file": authority.file,
        "redis_cert_file": ours.certificate, "redis_key_file": ours.key, **SECRETS,
    }  # fmt: skip
    if scheme == "sentinels":
        sentinel = free_port()
        lines = f'sentinel monitor mymaster 127.0.0.1 {port} 1\nsentinel auth-pass mymaster "{PASSWORD}"'
        made.start("sentinel", sentinel, f"{lines}\nrequirepass {SENTINEL_PASSWORD}", tls=server, ca=authority.file)
        values["redis_url"] = f"sentinels://127.0.0.1:{sentinel}/2"
    settings = load_settings(home=tmp_path / "home", **values)
    link = RedisLink.of(settings)
    queue, client = CeleryQueue(settings), link.client()
    until(client.ping)
    assert link.protected
    if (
        scheme == "sentinels"
    ):  # the worker's side of Celery and its result backend; of the other scheme they are the same
        serve(settings, tmp_path / "trace", as_environment(values), made)
        assert queue.call(RETRIEVE_TASK, [7, "original"], "retrieve", 120) == {"number": 7, "kind": "original"}
        queue.close()
        return
    queue.ping()
    queue.close()
    stranger = Authority(tmp_path, "Other CA")
    for changed in ({"redis_ca_file": stranger.file}, {"redis_cert_file": None, "redis_key_file": None}):
        refused = load_settings(home=tmp_path / "home", **(values | changed))
        with pytest.raises(redis.RedisError):
            RedisLink.of(refused).client().ping()
        # in another process: kombu shares the connections of one address among all applications of a process
        code = "from gateway.jobs import CeleryQueue; from gateway.settings import load_settings as s; CeleryQueue(s())"
        env = python_environment(ROOT) | as_environment({n: v for n, v in (values | changed).items() if v})
        done = subprocess.run(
            [sys.executable, "-c", f"{code}.send('{ENCODE_TASK}', [1], 'encode')"],
            env=env, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 1 and "queue-unavailable" in done.stderr


@pytest.mark.parametrize(
    ("url", "hosts", "protected"),
    [
        ("redis://h", (("h", 6379),), False),
        ("redis://:p@h:7/1", (("h", 7),), False),
        ("rediss://:p%40q@[fe80::1]:7", (("fe80::1", 7),), True),
        ("rediss://h", (("h", 6379),), False),
        ("sentinel://a,b:7", (("a", 26379), ("b", 7)), False),
        ("sentinel://a:1;b:2/4", (("a", 1), ("b", 2)), False),
        ("redis+socket:///run/x.sock", (), True),
    ],
)
def test_addresses(url: str, hosts: tuple[tuple[str, int], ...], protected: bool) -> None:
    link = RedisLink.of(load_settings(redis_url=url))
    assert link.hosts == hosts and link.protected is protected
    assert "p@q" not in repr(link) and "p@q" not in link.where


@pytest.mark.parametrize(
    "url",
    ["http://secret@h", "redis://secret@h,i", "redis://secret@", "rediss://:secret@h/x", "redis://:secret@h:99999",
     "rediss://:secret@h?ssl_cert_reqs=none", "secret"],
)  # fmt: skip
def test_addresses_that_are_none_are_refused_without_being_repeated(url: str) -> None:
    with pytest.raises(Unavailable) as refused:
        RedisLink.of(load_settings(redis_url=url))
    assert refused.value.reason == "bad-redis-url" and "secret" not in str(refused.value)
