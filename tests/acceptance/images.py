"""The images of the Dockerfile, built and run without an engine: buildah (chroot isolation), namespaces, chroot.

    sudo .venv/bin/python -m tests.acceptance.images [--base FOLDER] [--pip-conf FILE] [--built]

Needs root, buildah and, without --base, debootstrap (Debian bookworm with python3 becomes the base image). Each process
runs as the image says: its own mount, PID, IPC and UTS namespace, user 10001, no capabilities, no new privileges, a
read-only root, tmpfs on /tmp, two volumes, its default or compose's command. PostgreSQL and Valkey are real ones from
wheels, the network is this host's. The sample study goes in by STOW-RS, must be archived, and comes back
equal: bit for bit, or, what was received compressed without loss, in every pixel and every other byte.

No device is needed: in the CUDA image the kernels are compiled to machine code, its worker must refuse to start and say
why, and everything else runs as if it were there (PALIMPSEST_GPU_DEVICES=0), so that the CPU workers must take over.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from hashlib import sha256
from pathlib import Path

import httpx
import yaml

from gateway.broker import find_server_binary
from palimpsest.client import Route, WebClient
from palimpsest.compare import compare
from palimpsest.samples import write_samples
from tests.postgres import postgres_server
from tests.running import ROOT, free_port

TARGETS = ("service", "worker", "worker-gpu")
PACKAGES = "python3,python3-venv,ca-certificates"
UID = 10001
CAPABILITIES = ("8.0", "9.0", "10.0", "12.0")  # compute capabilities: A100; H100, H200; B200; RTX 50
BOUNDARY = "images-boundary"
WAIT_SECONDS = 1800.0
#: What an engine does, by hand; $1 root of the image, $2 and $3 volumes, then environment and command.
CONTAIN = """
mount --make-rprivate /
root=$1; home=$2; local=$3; shift 3
mount --bind "$root" "$root"; mount -o remount,bind,ro "$root"
mount -t proc proc "$root/proc"; mount --rbind /dev "$root/dev"
mount -t tmpfs -o size=1g,mode=1777 tmpfs "$root/tmp"
mount --bind "$home" "$root/var/lib/palimpsest"; mount --bind "$local" "$root/var/local/palimpsest"
exec chroot --userspec=10001:10001 --groups= "$root" /usr/bin/env -i "$@"
"""


def run(*command: str | Path) -> str:
    """Its output. Raises CalledProcessError, after showing what it said."""
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)
    if done.returncode:
        print(done.stdout[-4000:], done.stderr[-4000:], sep="\n")
    done.check_returncode()
    return done.stdout.strip()


def build(arguments: argparse.Namespace, work: Path, stack: ExitStack) -> dict[str, Path]:
    """Target -> the image's root, mounted until the stack ends. Built again, an image takes up what has not changed."""
    print("source:", run("git", "-C", ROOT, "describe", "--always", "--dirty"), flush=True)
    base = arguments.base
    if base is None and not arguments.built:
        base = work / "base"
        run("debootstrap", "--variant=minbase", f"--include={PACKAGES}", "bookworm", base)
    if not arguments.built:
        empty = run("buildah", "from", "scratch")
        run("buildah", "add", "-q", empty, base, "/")
        run("buildah", "commit", "-q", "--rm", "--timestamp", "0", empty, "localhost/palimpsest-base")
    more = ["--volume", "/etc/ssl/certs:/etc/ssl/certs:ro"]
    if arguments.pip_conf is not None:
        more += ["--volume", f"{arguments.pip_conf.resolve()}:/etc/pip.conf:ro"]
    roots = {}
    for target in TARGETS:
        began = time.monotonic()
        name = f"localhost/palimpsest-{target}"
        if not arguments.built:
            options = ["--isolation", "chroot", "--layers", "--format", "docker", *more, "--target", target]
            run("buildah", "bud", *options, "--build-arg", "BASE=localhost/palimpsest-base", "-t", name, ROOT)
        made = run("buildah", "from", name)
        stack.callback(run, "buildah", "rm", made)
        roots[target] = Path(run("buildah", "mount", made))
        size = run("du", "-sm", roots[target]).split()[0]
        took = "as it was" if arguments.built else f"built in {time.monotonic() - began:.0f} s"
        print(f"image {target}: {size} MB unpacked, {took}", flush=True)
    return roots


class Containers:
    """Processes of images, all on the same two volumes."""

    def __init__(self, roots: dict[str, Path], work: Path, environment: dict[str, str]) -> None:
        self._roots, self._environment = roots, environment
        self._volumes = [work / "home", work / "local"]
        self._logs = work / "log"
        self._logs.mkdir()
        for volume in self._volumes:
            volume.mkdir(mode=0o700)
            os.chown(volume, UID, UID)
        self.running: dict[str, subprocess.Popen[bytes]] = {}

    def command(self, target: str, name: str, *arguments: str) -> list[str]:
        """What starts `arguments` in that image."""
        inside = {
            "PATH": "/opt/palimpsest/bin:/usr/local/bin:/usr/bin:/bin", "PALIMPSEST_HOME": "/var/lib/palimpsest",
            "PALIMPSEST_LOCAL_DIR": "/var/local/palimpsest", "PYTHONDONTWRITEBYTECODE": "1",
            "HOME": "/var/lib/palimpsest", **self._environment,
        }  # fmt: skip
        outside = ["unshare", "--mount", "--pid", "--fork", "--kill-child=SIGKILL", "--uts", "--ipc", "--"]
        outside += ["bash", "-euc", f"hostname {name}\n{CONTAIN}", "contain", str(self._roots[target])]
        values = [f"{key}={value}" for key, value in inside.items()]
        last = ["setpriv", "--no-new-privs", "--pdeathsig", "SIGKILL"]  # chroot cleared unshare's
        return [*outside, *map(str, self._volumes), *values, *last, *arguments]

    def once(self, target: str, *arguments: str) -> str:
        """Run to its end; its output."""
        return run(*self.command(target, "once", *arguments))

    def start(self, target: str, name: str, *arguments: str) -> None:
        """Run until `stop`."""
        with (self._logs / f"{name}.log").open("wb") as log:
            command = self.command(target, name, "palimpsest", *arguments)
            self.running[name] = subprocess.Popen(command, stdout=log, stderr=log)

    def stop(self) -> None:
        """End all; each takes its PID namespace with it."""
        for process in self.running.values():
            process.kill()  # unshare ignores SIGTERM while its child runs
        for process in self.running.values():
            process.wait()

    def logs(self) -> str:
        """The end of each log."""
        return "\n".join(
            f"--- {path.stem}\n{path.read_text('utf-8', 'replace')[-1500:]}" for path in self._logs.iterdir()
        )


@contextmanager
def valkey(work: Path) -> Iterator[str]:
    """URL of a server of its own."""
    port = free_port()
    command = [str(find_server_binary()), "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", str(work)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        yield f"redis://127.0.0.1:{port}/0"
    finally:
        server.terminate()
        server.wait()


def send(http: httpx.Client, data: bytes) -> None:
    """STOW-RS of one file (PS3.18 10.5). Raises HTTPStatusError."""
    body = (
        f"--{BOUNDARY}\r\nContent-Type: application/dicom\r\n\r\n".encode() + data + f"\r\n--{BOUNDARY}--\r\n".encode()
    )
    kind = f'multipart/related; type="application/dicom"; boundary={BOUNDARY}'
    http.post("/dicomweb/studies", content=body, headers={"Content-Type": kind}).raise_for_status()


def wait(what: str, containers: Containers, condition: Callable[[], bool]) -> None:
    """Poll a condition; a container that ended ends this, too."""
    deadline = time.monotonic() + WAIT_SECONDS
    while not condition():
        ended = [name for name, process in containers.running.items() if process.poll() is not None]
        if ended or time.monotonic() > deadline:
            sys.exit(f"{what}: {'ended: ' + ', '.join(ended) if ended else 'too late'}\n{containers.logs()}")
        time.sleep(0.2)


def hardened(containers: Containers) -> None:
    """What a process in a container may not do."""
    said = containers.once("service", "/bin/sh", "-c", "id -u; touch /x /opt/palimpsest/x /etc/x 2>&1; "
                           "grep -E 'CapEff|NoNewPrivs' /proc/self/status; touch /tmp/x && echo tmp")  # fmt: skip
    print("inside:", "; ".join(said.split("\n")))
    assert said.startswith(str(UID)) and said.count("Read-only file system") == 3 and said.endswith("tmp")
    assert "CapEff:\t0000000000000000" in said and "NoNewPrivs:\t1" in said
    missing = "import importlib.util as u; print([n for n in ('torch','numba','imagecodecs','pip') if u.find_spec(n)])"
    print("service image has of torch, numba, imagecodecs, pip:", containers.once("service", "python3", "-c", missing))


def main() -> None:
    """Build, run, judge; exit 0 if every sample came back equal."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", type=Path, help="root file system of the base image; default: debootstrap makes one")
    parser.add_argument("--pip-conf", type=Path, help="pip.conf for the build, of a site with its own package index")
    parser.add_argument("--built", action="store_true", help="run the images that are there from before")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that what was started ends with us
    with ExitStack() as stack:
        work = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="palimpsest-images-")))
        os.chmod(work, 0o755)
        roots = build(arguments, work, stack)
        pg_port = free_port()
        stack.enter_context(postgres_server("127.0.0.1", pg_port))
        redis_url = stack.enter_context(valkey(work))
        http_port, dicom_port = free_port(), free_port()
        containers = Containers(roots, work, {
            "PALIMPSEST_PROFILE": "demo", "REDIS_URL": redis_url, "PALIMPSEST_WATERMARK_BYTES": "0",
            "DATABASE_URL": f"postgresql://postgres@127.0.0.1:{pg_port}/postgres",
            "PALIMPSEST_HTTP_PORT": str(http_port), "PALIMPSEST_DICOM_PORT": str(dicom_port),
            "PALIMPSEST_HTTP_PROCESSES": "2", "PALIMPSEST_GPU_DEVICES": "0",
        })  # fmt: skip
        stack.callback(containers.stop)
        hardened(containers)
        judge(containers, work, f"http://127.0.0.1:{http_port}")


def gpu(containers: Containers, command: list[str]) -> None:
    """What the CUDA image can show without a device: its compiler compiles, its worker says why it does not start."""
    code = (ROOT / "tests/device_code.py").read_text("utf-8")
    print(containers.once("worker-gpu", "python3", "-c", code, *CAPABILITIES), flush=True)
    contained = containers.command("worker-gpu", "worker-gpu", "palimpsest", *command)
    done = subprocess.run(contained, capture_output=True, text=True, check=False, timeout=WAIT_SECONDS)
    print(f"palimpsest {' '.join(command)}: exit {done.returncode}: {done.stderr.strip()}", flush=True)
    assert done.returncode == 1 and "driver" in done.stderr and "CPU workers do its work" in done.stderr


def judge(containers: Containers, work: Path, base: str) -> None:
    """Start compose's services, send the samples, compare what comes back."""
    print(containers.once("service", "palimpsest", "migrate", "--wait", "60"))
    services = yaml.safe_load((ROOT / "docker-compose.yml").read_text("utf-8"))["services"]
    for name, service in services.items():
        image = str(service["image"]).removeprefix("palimpsest-")
        if image == "worker-gpu":
            gpu(containers, service["command"])
        elif image in TARGETS and name != "migrate":
            containers.start(image, name, *service["command"])
    token = containers.once("service", "palimpsest", "token", "--role", "service")
    http = httpx.Client(base_url=base, headers={"Authorization": f"Bearer {token}"}, timeout=60, trust_env=False)

    def answers() -> bool:
        try:
            return http.get("/readyz").status_code == 200
        except httpx.HTTPError:
            return False

    wait("api", containers, answers)
    for role in ("api", "listener"):
        containers.once("service", "palimpsest", "healthy", role)
    files = {sha256(each.read_bytes()).hexdigest(): each for each in write_samples(work / "samples")}
    began = time.monotonic()
    for path in files.values():
        send(http, path.read_bytes())

    def states() -> Counter[str]:
        return Counter(dict(http.get("/api/status").json()["states"]))

    def archived() -> bool:
        found = states()
        return found["ARCHIVED"] + found["RELEASED"] >= len(files)

    wait("archived", containers, archived)
    print(f"{len(files)} samples archived {time.monotonic() - began:.0f} s after the first was sent: {dict(states())}")
    client = WebClient(base, token)
    how: Counter[str] = Counter()
    for digest, path in files.items():
        with client.fetch_one(Route.digest(digest)) as got:
            verdict = compare(path, got)
            how[verdict.how if verdict.equal else f"DIFFERENT {path.name}: {verdict.difference}"] += 1
    equal = sum(count for name, count in how.items() if not name.startswith("DIFFERENT"))
    print(f"{equal} of {len(files)} came back equal: {dict(how)}")
    if equal != len(files):
        sys.exit(1)


if __name__ == "__main__":
    main()
