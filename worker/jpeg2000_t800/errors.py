"""What this decoder raises; nothing else leaves it, whatever the bytes."""

from __future__ import annotations

__all__ = ["J2kCorrupt", "J2kError", "J2kUnsupported"]


class J2kError(Exception):
    """Root: `reason` is a machine word ([a-z0-9-]), safe in logs and metrics; the message holds no sample values."""

    def __init__(self, reason: str, message: str = "") -> None:
        super().__init__(f"{reason}: {message}" if message else reason)
        self.reason = reason

    def __reduce__(self) -> tuple[type[J2kError], tuple[str]]:
        return (type(self), (self.reason,))


class J2kUnsupported(J2kError):
    """A legal codestream (as far as it was read) that this decoder refuses: irreversible, subsampled, too large, ..."""


class J2kCorrupt(J2kError):
    """The codestream is truncated, or contradicts itself or ITU-T T.800."""
