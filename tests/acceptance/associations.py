"""Memory of the listener while associations are opened and dropped, in every way that a peer may do it.

    python -m tests.acceptance.associations [--count 10000] [--step 500] [--processes 1]

Ways, in turn: connect and leave; half a request; a request and gone before the answer; accepted and reset; accepted and
dropped in the middle of an object; an orderly release. Prints memory, threads and descriptors after
each step. Exits 1 if, the first fifth left out, the median memory of the second half is more than 1/20 above that
of the first, or if threads or descriptors grew at all.
"""

from __future__ import annotations

import argparse
import socket
import struct
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from statistics import median

import psutil

from gateway.settings import use_numba_cache
from tests.acceptance.intake import Refused, Sender, association_request, ours, uids

AT_ONCE = 8
WAYS = 6
MEMORY_MARGIN = 1.05
REST_SECONDS = 30.0


def one(port: int, way: int) -> None:
    """Open an association, or nearly, and leave it so."""
    request = association_request("PALIMPSEST")
    with suppress(OSError, Refused):
        if way >= 3:
            sender = Sender(port, "PALIMPSEST", timeout=20, give_up_after=2)
            if way == 5:
                sender.close()
                return
            if way == 4:
                with suppress(Refused):
                    sender.send(next(uids(1, 1)))
            leave(sender.connection, reset=way == 3)
            return
        peer = socket.create_connection(("127.0.0.1", port), timeout=20)
        if way:
            peer.sendall(request[: len(request) // (3 - way)])
        leave(peer, reset=False)


def leave(connection: socket.socket, *, reset: bool) -> None:
    """Close, with RST if wanted."""
    if reset:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


def at_rest(processes: list[psutil.Process], port: int) -> None:
    """Wait until the listener holds no connection."""
    until = time.monotonic() + REST_SECONDS
    while time.monotonic() < until:
        held = [c for process in processes for c in process.net_connections() if c.laddr and c.laddr.port == port]
        if all(each.status == psutil.CONN_LISTEN for each in held):
            return
        time.sleep(0.1)
    raise SystemExit("the listener still holds connections")


def curve(port: int, processes: list[psutil.Process], count: int, step: int) -> Iterator[tuple[int, float, int, int]]:
    """(associations so far, resident MiB, threads, descriptors) after each step."""
    for done in range(0, count, step):
        with ThreadPoolExecutor(AT_ONCE) as pool:
            list(pool.map(lambda number: one(port, number % WAYS), range(done, done + step)))
        at_rest(processes, port)
        yield (
            done + step,
            sum(process.memory_info().rss for process in processes) / 2**20,
            sum(process.num_threads() for process in processes),
            sum(process.num_fds() for process in processes),
        )


def main() -> None:
    """See the module's text."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--step", type=int, default=500)
    parser.add_argument("--processes", type=int, default=1)
    arguments = parser.parse_args()
    use_numba_cache()
    with tempfile.TemporaryDirectory() as name, ours(Path(name), arguments.processes) as (rig, found):
        listener = found[0]
        processes = [listener, *listener.children(recursive=True)]
        points = []
        print(f"{'associations':>12} {'MiB':>8} {'threads':>8} {'descriptors':>12}")
        for point in curve(rig.settings.dicom_port, processes, arguments.count, arguments.step):
            points.append(point)
            print(f"{point[0]:>12} {point[1]:>8.1f} {point[2]:>8} {point[3]:>12}", flush=True)
        left = list(rig.settings.incoming_dir.iterdir())
        settled = points[len(points) // 5 :]
        early, late = settled[: len(settled) // 2], settled[len(settled) // 2 :]
        memory = [median(point[1] for point in half) for half in (early, late)]
        flat = memory[1] <= memory[0] * MEMORY_MARGIN and late[-1][2:] <= early[0][2:]
        print(f"files left: {len(left)}; rows: {rig.gw.index.counts().total}; {'flat' if flat else 'GROWING'}")
    sys.exit(0 if flat and not left else 1)


if __name__ == "__main__":
    main()
