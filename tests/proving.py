"""The proof without a process of its own, for tests that are about something else."""

from __future__ import annotations

from gateway.keys import KeyRing
from worker.verify import VerifyReport, check_envelope, check_group


class InProcess:
    """Stands in for `worker.verify.Verifier`: the same check, with this ring, in this process."""

    def __init__(self, keys: KeyRing) -> None:
        self._keys = keys

    def check(self, envelope: bytes, member: int | None = None) -> VerifyReport:
        """See `worker.verify.Verifier.check`."""
        return check_envelope(envelope, self._keys, member=member)

    def check_group(self, envelope: bytes) -> list[VerifyReport]:
        """See `worker.verify.Verifier.check_group`."""
        return check_group(envelope, self._keys)
