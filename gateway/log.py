"""JSON logs on stderr with an allow-list of fields: no patient data by construction.

Our own modules log constant sentences and put facts into `extra`. Texts of other libraries may quote anything
(pynetdicom dumps data sets, drivers quote parameters): theirs pass only from libraries known to say nothing about
objects. Exceptions appear as type and places in the code, never as their message.
"""

from __future__ import annotations

import json
import logging
import sys
import threading
import time
import traceback
from types import TracebackType
from typing import Any, Final

from gateway.errors import PalimpsestError
from gateway.settings import Settings

FIELDS: Final = frozenset(
    {
        "reason", "instance_id", "forward_id", "state", "form", "coder", "destination", "seconds", "count", "attempts",
        "bytes", "port", "host", "source", "outcome", "queue", "task", "kind", "status", "route", "method", "pid",
        "role", "key_id", "address", "owner", "version", "signal", "exit_code", "child",
    }
)  # fmt: skip
OURS: Final = ("gateway", "service", "worker", "codec", "stego", "palimpsest", "__main__")
SPEAKING: Final = ("uvicorn.error", "celery", "kombu", "alembic")  # about themselves only
MUTE: Final = ("celery.app.trace",)  # quotes what a task raised
_MAX_TEXT: Final = 500


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time, level, logger, text, allowed fields, exception type and places."""

    def format(self, record: logging.LogRecord) -> str:
        """The line, without newline."""
        line: dict[str, Any] = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z",
            "level": record.levelname,
            "logger": record.name,
            "text": _text(record),
        }
        line |= {name: _plain(value) for name, value in vars(record).items() if name in FIELDS}
        if record.exc_info and record.exc_info[0] is not None:
            line["exception"] = record.exc_info[0].__name__
            line["places"] = _places(record.exc_info[2])
        return json.dumps(line, ensure_ascii=True)


def configure_logging(settings: Settings) -> None:
    """Send every log record of this process through JsonFormatter to stderr; replaces earlier handlers.

    Exceptions that nothing caught, in any thread, go the same way.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    for name in (*OURS, "uvicorn.error"):
        logging.getLogger(name).setLevel(settings.log_level)
    access = logging.getLogger("uvicorn.access")  # its lines quote query strings, which hold names
    access.handlers[:] = []
    access.propagate = False
    sys.excepthook = _uncaught
    threading.excepthook = lambda args: _uncaught(args.exc_type, args.exc_value, args.exc_traceback)


def _uncaught(kind: type[BaseException], error: BaseException | None, trace: TracebackType | None) -> None:
    """What ends a process or a thread is logged like any exception: Python's own hooks would print its message.

    Ours say what to do and hold nothing of a patient (`gateway.errors`): a refusal to start must be read.
    """
    if issubclass(kind, KeyboardInterrupt):
        return
    if isinstance(error, PalimpsestError):
        logging.getLogger(__name__).critical(error.message, extra={"reason": error.reason})
    logging.getLogger(__name__).critical("uncaught exception", exc_info=(kind, error or kind(), trace))


def _text(record: logging.LogRecord) -> str:
    top = record.name.split(".")[0]
    if record.name in MUTE:
        return "(text of another library withheld)"
    if top in OURS or any(record.name == n or record.name.startswith(n + ".") for n in SPEAKING):
        return record.getMessage()[:_MAX_TEXT]
    return "(text of another library withheld)"


def _plain(value: object) -> object:
    return value if isinstance(value, (int, float, bool)) or value is None else str(value)[:200]


def _places(trace: Any) -> list[str]:
    frames = traceback.extract_tb(trace)[-8:]
    return [f"{'/'.join(frame.filename.split('/')[-2:])}:{frame.lineno} {frame.name}" for frame in frames]
