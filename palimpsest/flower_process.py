"""Flower, as a process of the gateway's (`python -m palimpsest.flower_process`): what Celery's workers do, to look at.

It answers on a unix socket in the run folder and nowhere else, read-only; the API passes on what admins ask below
/admin/flower (service/flower.py). Where the extra `flower` is missing it ends with a text that says so.
"""

from __future__ import annotations

from importlib.util import find_spec

from gateway.jobs import celery_app
from gateway.log import configure_logging
from gateway.settings import load_settings

__all__ = ["main"]


def main() -> None:
    """Serve until SIGTERM."""
    settings = load_settings()
    configure_logging(settings)
    if find_spec("flower") is None:
        raise SystemExit("PALIMPSEST_FLOWER needs the extra: pip install 'palimpsest[flower]'")
    socket = settings.flower_socket
    socket.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    celery_app(settings).start(
        [
            "--quiet",
            "flower",
            f"--unix_socket={socket}",
            "--url_prefix=admin/flower",
            "--read_only=true",
            "--inspect_timeout=200",  # ms; workers take no remote control, so nobody answers
            "--max_tasks=10000",
            "--logging=warning",
            "--conf=/dev/null",
        ]
    )


if __name__ == "__main__":
    main()
