"""What can go wrong in this room.

StegoError
  SealError      something sealed does not open; says only "refused", whatever the cause
  CarrierError   a carrier description that does not fit the image (visible without any key)
  RecordTooLong  a record that fits no length class (a caller's fault, before anything is sealed)
"""

from __future__ import annotations


class StegoError(Exception):
    """Root of this room's errors."""


class SealError(StegoError):
    """Sealed bytes were refused.

    Wrong key, wrong context, truncated, altered or swapped: the caller, and whoever watches the caller, learns
    only that it did not open. Carries no cause, so that a logged traceback tells no more.
    """

    def __init__(self) -> None:
        super().__init__("refused")


class CarrierError(StegoError):
    """The carrier description (start, length, bitmap) does not fit the image. `reason` is a machine word."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class RecordTooLong(StegoError, ValueError):
    """The record is longer than the largest length class holds."""
