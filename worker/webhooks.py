"""Posting study events to webhooks: in order, one thread and one place in the row of events for each receiver.

So a receiver that is down, slow or wrong delays no other, and nothing else: the events wait in their table. A receiver
may get an event twice (a kill between its answer and our commit): its number tells.
"""

from __future__ import annotations

import logging
import ssl
import threading
import time
from collections.abc import Callable
from typing import Final

import httpx

from gateway.bootstrap import Gateway
from gateway.errors import PalimpsestError, Unavailable
from gateway.study_state import StudyEvent
from gateway.webhook import SIGNATURE, Webhook, signature

__all__ = ["deliver", "run_webhooks"]

log = logging.getLogger(__name__)

TIMEOUT_SECONDS: Final = 10.0
FIRST_PAUSE_SECONDS: Final = 2.0
LONGEST_PAUSE_SECONDS: Final = 600.0
ALERT_AFTER: Final = 8  # attempts, some ten minutes
BATCH: Final = 100
#: Answers that another attempt may change; of the other 4xx none will.
PASSING: Final = frozenset({401, 403, 404, 408, 409, 421, 423, 425, 429})
Post = Callable[[Webhook, StudyEvent], int]


def deliver(gw: Gateway, hook: Webhook, post: Post) -> int:
    """Post what is due to one receiver; how many events it took or was spared. post: gives the HTTP status, raises
    httpx.HTTPError. Stops at the first that must be tried again.
    """
    last, attempts, due = gw.index.subscriber_state(hook.name)
    if due > gw.index.now():
        return 0
    done = 0
    for event in gw.index.study_events(last, BATCH):
        if not hook.kinds or event.kind in hook.kinds:
            reason = _attempt(hook, event, post)
            if reason is not None and not reason.startswith("refused"):
                _put_off(gw, hook, last, attempts + 1, reason)
                return done
            if reason is not None:
                text = f"webhook '{hook.name}' refused an event for good ({reason}); the next one goes out"
                gw.index.alert_raise("webhook-refused", hook.name, text, "warning")
        last, attempts, done = event.id, 0, done + 1
        gw.index.subscriber_set(hook.name, last, 0, 0.0, None)
    return done


def _attempt(hook: Webhook, event: StudyEvent, post: Post) -> str | None:
    """None if the receiver has it, else why not."""
    try:
        status = post(hook, event)
    except Unavailable as error:
        return error.reason
    except httpx.TimeoutException:
        return "timeout"
    except (httpx.HTTPError, OSError) as error:
        return type(error).__name__.lower()
    if 200 <= status < 300:
        return None
    return f"refused-{status}" if 400 <= status < 500 and status not in PASSING else f"status-{status}"


def _put_off(gw: Gateway, hook: Webhook, last: int, attempts: int, reason: str) -> None:
    pause = min(LONGEST_PAUSE_SECONDS, FIRST_PAUSE_SECONDS * 2 ** min(attempts - 1, 20))
    gw.index.subscriber_set(hook.name, last, attempts, gw.index.now() + pause, reason[:64])
    log.warning("a webhook could not be told", extra={"reason": reason, "kind": hook.name, "count": attempts})
    if attempts == ALERT_AFTER:
        gw.index.alert_raise("webhook-down", hook.name, f"webhook '{hook.name}' does not answer ({reason})", "warning")


class Poster:
    """Posts over connections of its own. No redirects and no proxies: only the address in the settings is spoken to.
    The answer's body is not read.
    """

    def __init__(self, hook: Webhook) -> None:
        """Raises Unavailable ``certificate-unreadable``."""
        self._client = httpx.Client(
            verify=_trust(hook), timeout=TIMEOUT_SECONDS, follow_redirects=False, trust_env=False
        )

    def __call__(self, hook: Webhook, event: StudyEvent) -> int:
        body, at = hook.body(event), int(time.time())
        headers = {
            "Content-Type": "application/json",
            "User-Agent": "palimpsest",
            "Palimpsest-Event": str(event.id),
            SIGNATURE: signature(hook.secret(), at, body),
        }
        with self._client.stream("POST", hook.url, content=body, headers=headers) as answer:
            return answer.status_code

    def close(self) -> None:
        """Close the connections."""
        self._client.close()


def _trust(hook: Webhook) -> ssl.SSLContext:
    context = ssl.create_default_context()
    if hook.ca_file is not None:
        try:
            context.load_verify_locations(hook.ca_file)
        except (OSError, ValueError) as error:
            raise Unavailable("certificate-unreadable", f"{hook.ca_file}: {type(error).__name__}") from None
    return context


def run_webhooks(gw: Gateway, stop: threading.Event) -> list[threading.Thread]:
    """Start a thread for each receiver; they end with `stop`, at the latest with the process."""
    threads = [threading.Thread(target=_run, args=(gw, hook, stop), daemon=True) for hook in gw.settings.webhooks]
    for thread in threads:
        thread.start()
    return threads


def _run(gw: Gateway, hook: Webhook, stop: threading.Event) -> None:
    poster: Poster | None = None
    while not stop.is_set():
        try:
            poster = poster or Poster(hook)
            busy = deliver(gw, hook, poster)
        except PalimpsestError as error:
            log.warning("events cannot be told", extra={"reason": error.reason, "kind": hook.name})
            busy = 0
        if not busy:
            stop.wait(gw.settings.poll_seconds)
    if poster is not None:
        poster.close()
