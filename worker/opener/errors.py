"""What the opener raises on purpose."""

from __future__ import annotations


class OpenError(Exception):
    """Root of the opener's errors: a sentence for the person at the keyboard."""


class Damaged(OpenError):
    """The object's bytes are not what its own checksums say, or not of this format."""


class Refused(OpenError):
    """A sealed part does not open: wrong key, or altered. Which of both cannot be told."""


class NeedsLibrary(OpenError):
    """A frame is coded by a standard codec that has no plain decoder here, and no library of it is installed."""
