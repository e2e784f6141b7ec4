"""Which transfer syntax to take when a sender offers several: uncompressed, then lossless, then lossy (gateway.md,
Taking in).

pynetdicom's unrestricted storage service accepts the *first* syntax of the proposal, and many senders convert to
whatever is
accepted: one that offers JPEG first would then compress lossily for us.  So the proposal is put in our order before it
is negotiated.  Ranks follow the tables of gateway/transfer_syntaxes.py; a syntax not in them comes last.
"""

from __future__ import annotations

from collections.abc import Iterable

from gateway.transfer_syntaxes import LOSSLESS, LOSSY, REFERENCED, UNCOMPRESSED

__all__ = ["KNOWN_SYNTAXES", "rank", "sort_syntaxes"]

KNOWN_SYNTAXES = (*UNCOMPRESSED, *LOSSLESS, *LOSSY, *REFERENCED)
_RANK = {uid: place for place, uid in enumerate(KNOWN_SYNTAXES)}


def rank(uid: str) -> int:
    """Place of a transfer syntax in our order of preference; unknown ones share the last place."""
    return _RANK.get(uid, len(_RANK))


def sort_syntaxes(proposed: Iterable[str]) -> list[str]:
    """The proposal in our order; equal ranks keep the sender's order."""
    return sorted(proposed, key=rank)
