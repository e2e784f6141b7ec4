"""The proof without a process of its own, for tests that are about something else."""

from __future__ import annotations

from gateway.keys import KeyRing
from worker.verify import VerifyReport, check_envelope


class InProcess:
    """Stands in for `worker.verify.Verifier`: the same check, with this ring, in this process."""

    def __init__(self, keys: KeyRing) -> None:
        self._keys = keys

    def check(self, envelope: bytes) -> VerifyReport:
        """See `worker.verify.Verifier.check`."""
        return check_envelope(envelope, self._keys)
