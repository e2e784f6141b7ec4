"""Which keys a piece of work used: gathered while it runs, written into its audit event.

The ring of a gateway tells `note_use` of every use; `used_keys` gathers what its own block did, and nothing of what
other threads do meanwhile.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field

__all__ = ["KeyUse", "keys_used", "note_use", "used_keys"]

MAX_NAMED = 12  # ids in one audit event: an extraction may try many


@dataclass(slots=True)
class KeyUse:
    """What was used so far: purpose ('wrap', 'unwrap', 'sign', 'verify', 'pseudonym', 'embed', ...) and key id."""

    seen: dict[tuple[str, str], None] = field(default_factory=dict)

    def ids(self) -> str:
        """Key ids in the order of their first use, joined by blanks: no secret, no patient data."""
        ids = list(dict.fromkeys(key_id for _, key_id in self.seen))
        more = f" +{len(ids) - MAX_NAMED}" if len(ids) > MAX_NAMED else ""
        return " ".join(ids[:MAX_NAMED]) + more


_current: ContextVar[KeyUse | None] = ContextVar("palimpsest_key_use", default=None)


def note_use(purpose: str, key_id: str) -> None:
    """The observer of a gateway's ring."""
    use = _current.get()
    if use is not None:
        use.seen[purpose, key_id] = None


def keys_used() -> str:
    """`KeyUse.ids` of the block we are in; '' outside."""
    use = _current.get()
    return use.ids() if use is not None else ""


@contextmanager
def used_keys() -> Iterator[KeyUse]:
    """Gather the uses of keys in the block; a block inside another adds to both."""
    use, outer = KeyUse(), _current.get()
    token = _current.set(use)
    try:
        yield use
    finally:
        _current.reset(token)
        if outer is not None:
            outer.seen.update(use.seen)
