"""Every error of Palimpsest, grouped by whose fault it is and what to do next.

::

    PalimpsestError
    |- InvalidInstance      the sender's: never retry the same bytes         400 / 0xC000
    |  |- BadUID            a UID or AE title against PS3.5 6.2 and 9.1      400 / 0x0117
    |  |- UIDMismatch       command set and data set disagree                409 / 0xA900
    |  `- NotDicom          not a Part 10 file (PS3.10 7)                    400 / 0xC000
    |- PolicyRefused        our policy's: ask an administrator               403 / 0x0124
    |  `- BadPolicy          the policy file is wrong: nothing starts        403 / 0x0124
    |- OutOfResources       our disk's: retry later, elsewhere               507 / 0xA700
    |- NotFound             nobody's: there is no such thing                 404 / 0x0112
    |- Gone                 was here, and was destroyed on purpose           410 / 0x0112
    |- Unavailable          ours and passing: retry after `retry_after` s    503 / 0xA700
    |  |- ObjectUnavailable one archive object's, while the archive answers: go on with the others     503 / 0xA700
    |  `- TooMany           the asker's pace: retry after `retry_after` s    429 / 0xA700
    |- IntegrityError       bytes are not what their digest says: never retry, never serve   500 / 0x0110
    |- Unsupported          the codec's: the object goes on as PASSTHROUGH   415 / 0x0122
    `- LeaseLost            another worker owns the row now: stop silently   409 / 0x0110

`reason` is a machine word ([a-z0-9-]), safe in logs and metrics. `message` is for people; no patient data, no UID.
DIMSE statuses: PS3.4 B.2.3 and PS3.7 C.
"""

from __future__ import annotations

from typing import Any, ClassVar


class PalimpsestError(Exception):
    """Root of the tree: a machine word and a sentence without patient data."""

    http_status: ClassVar[int] = 500
    dimse_status: ClassVar[int] = 0x0110
    title: ClassVar[str] = "Internal error"

    def __init__(self, reason: str, message: str = "") -> None:
        super().__init__(message or reason)
        self.reason = reason
        self.message = message or reason.replace("-", " ")

    def __reduce__(self) -> tuple[Any, ...]:
        return (type(self), (self.reason, self.message))

    def problem(self) -> dict[str, Any]:
        """RFC 9457 problem details as a JSON-able dict: type, title, status, detail, reason."""
        return {
            "type": f"urn:palimpsest:problem:{self.reason}",
            "title": self.title,
            "status": self.http_status,
            "detail": self.message,
            "reason": self.reason,
        }


class InvalidInstance(PalimpsestError):
    """The bytes are no DICOM object that we can take; sending them again changes nothing."""

    http_status = 400
    dimse_status = 0xC000
    title = "Invalid instance"


class BadUID(InvalidInstance):
    """A UID or AE title that PS3.5 6.2 / 9.1 does not allow."""

    dimse_status = 0x0117
    title = "Invalid identifier"


class UIDMismatch(InvalidInstance):
    """The command set (or the URL) names another SOP class or instance than the data set."""

    http_status = 409
    dimse_status = 0xA900
    title = "Data set does not match"


class NotDicom(InvalidInstance):
    """Not a Part 10 file."""

    title = "Not a DICOM file"


class PolicyRefused(PalimpsestError):
    """Understood, and not allowed by the policy in force."""

    http_status = 403
    dimse_status = 0x0124
    title = "Refused by policy"


class BadPolicy(PolicyRefused):
    """The policy file is wrong; the message names lines, rules and what to do. Nothing may start with it."""

    title = "Policy file not in order"


class OutOfResources(PalimpsestError):
    """Free space under the watermark, or an object above the size limit."""

    http_status = 507
    dimse_status = 0xA700
    title = "Insufficient storage"


class NotFound(PalimpsestError):
    """There is no such study, series, instance, object or row."""

    http_status = 404
    dimse_status = 0x0112
    title = "Not found"


class Gone(PalimpsestError):
    """It was here and was destroyed on purpose (crypto-shredding): nobody can bring it back."""

    http_status = 410
    dimse_status = 0x0112
    title = "Gone"


class Unavailable(PalimpsestError):
    """A dependency is down for now: retry after `retry_after` seconds."""

    http_status = 503
    dimse_status = 0xA700
    title = "Temporarily unavailable"

    def __init__(self, reason: str, message: str = "", retry_after: float = 5.0) -> None:
        super().__init__(reason, message)
        self.retry_after = retry_after

    def __reduce__(self) -> tuple[Any, ...]:
        return (type(self), (self.reason, self.message, self.retry_after))

    def problem(self) -> dict[str, Any]:
        """As the parent's, with the seconds to wait."""
        return {**super().problem(), "retry_after": self.retry_after}


class ObjectUnavailable(Unavailable):
    """One archive object cannot be read now, while the archive itself answers."""


class TooMany(Unavailable):
    """More requests in a time than one asker may send: retry after `retry_after` seconds."""

    http_status = 429
    title = "Too many requests"


class IntegrityError(PalimpsestError):
    """Stored bytes or stored states contradict what was recorded: never retried, never served."""

    title = "Integrity check failed"


class Unsupported(PalimpsestError):
    """The codec cannot take this object; it goes on whole, as PASSTHROUGH, counted under `reason`."""

    http_status = 415
    dimse_status = 0x0122
    title = "Unsupported"


class LeaseLost(PalimpsestError):
    """The caller's lease on a row ran out or was taken over: stop, write nothing."""

    http_status = 409
    title = "Lease lost"
