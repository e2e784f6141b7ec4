"""Every event that the trail may hold, and the audit message of PS3.15 A.5.3 that says it to others.

An event that is not in `EVENTS` cannot be written: whoever adds one says here what it is. Codes: PS3.16 CID 400 (audit
event ID) and CID 401 (audit event type code), coding scheme DCM.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, Literal

__all__ = ["EVENTS", "KINDS", "Code", "Message", "Shape", "message_of"]

Action = Literal["C", "R", "U", "D", "E"]


@dataclass(frozen=True, slots=True)
class Code:
    """A coded value: `value` in coding scheme `scheme`, with its meaning."""

    value: str
    meaning: str
    scheme: str = "DCM"


class Shape(StrEnum):
    """Who takes part in a message and what it is about, by the tables of A.5.3."""

    APPLICATION = "application"  # A.5.3.1: the application, who launched it
    LOG = "log"  # A.5.3.2: who uses the log; the log
    INCOMING = "incoming"  # A.5.3.3, A.5.3.7: from the actor to us; study and patient
    OUTGOING = "outgoing"  # the same from us to a destination, or to the actor
    ACCESS = "access"  # A.5.3.6, A.5.3.8, A.5.3.14: who does it; study and patient
    MEDIA_OUT = "media-out"  # A.5.3.4: who exports, the medium
    MEDIA_IN = "media-in"  # A.5.3.5: who imports, the medium
    NODE = "node"  # A.5.3.9: the machine
    QUERY = "query"  # A.5.3.10: who asks, who answers; what was asked
    ALERT = "alert"  # A.5.3.11: who reports; what it is about
    PERSON = "person"  # A.5.3.12: who is authenticated, by whom


@dataclass(frozen=True, slots=True)
class Message:
    """What an event becomes. lifecycle: Participant Object Data Life Cycle of its objects (A.5.1.2.3), or ''."""

    event_id: Code
    action: Action
    shape: Shape
    event_type: Code | None = None
    lifecycle: str = ""


ACTIVITY: Final = Code("110100", "Application Activity")
LOG_USED: Final = Code("110101", "Audit Log Used")
BEGIN: Final = Code("110102", "Begin Transferring DICOM Instances")
ACCESSED: Final = Code("110103", "DICOM Instances Accessed")
TRANSFERRED: Final = Code("110104", "DICOM Instances Transferred")
DELETED: Final = Code("110105", "DICOM Study Deleted")
EXPORT: Final = Code("110106", "Export")
IMPORT: Final = Code("110107", "Import")
NETWORK: Final = Code("110108", "Network Entry")
PATIENT: Final = Code("110110", "Patient Record")
QUERY: Final = Code("110112", "Query")
ALERT: Final = Code("110113", "Security Alert")
USER: Final = Code("110114", "User Authentication")

START, STOP = Code("110120", "Application Start"), Code("110121", "Application Stop")
LOGIN, LOGOUT = Code("110122", "Login"), Code("110123", "Logout")
NODE_AUTHENTICATION: Final = Code("110126", "Node Authentication")
NETWORK_CONFIGURATION: Final = Code("110128", "Network Configuration")
SECURITY_CONFIGURATION: Final = Code("110129", "Security Configuration")
SOFTWARE_CONFIGURATION: Final = Code("110131", "Software Configuration")
RESTRICTED: Final = Code("110132", "Use of Restricted Function")
OBJECT_ATTRIBUTES: Final = Code("110135", "Object Security Attributes Changed")
USER_ATTRIBUTES: Final = Code("110137", "User Security Attributes Changed")

_RECEIVED: Final = Message(TRANSFERRED, "C", Shape.INCOMING, lifecycle="2")
_SENT: Final = Message(TRANSFERRED, "R", Shape.OUTGOING, lifecycle="11")
_MADE: Final = Message(ACCESSED, "C", Shape.ACCESS, lifecycle="1")
_READ: Final = Message(ACCESSED, "R", Shape.ACCESS, lifecycle="6")
_CHANGED: Final = Message(ACCESSED, "U", Shape.ACCESS, lifecycle="3")
_PROVEN: Final = Message(ACCESSED, "R", Shape.ACCESS, lifecycle="4")
_KEYS: Final = Message(ALERT, "E", Shape.ALERT, SECURITY_CONFIGURATION)
_RESTRICTED: Final = Message(ALERT, "E", Shape.ALERT, RESTRICTED)
_CONFIGURED: Final = Message(ALERT, "E", Shape.ALERT, SOFTWARE_CONFIGURATION)

#: event -> message, where `KINDS` says nothing else
EVENTS: Final[Mapping[str, Message]] = {
    # taking in
    "received": _RECEIVED,
    "duplicate": Message(TRANSFERRED, "R", Shape.INCOMING, lifecycle="2"),
    "refused": Message(TRANSFERRED, "C", Shape.INCOMING),
    "version-chosen": _CHANGED,
    "rejected": _CHANGED,
    "corrected": Message(PATIENT, "U", Shape.ACCESS, lifecycle="3"),
    # coding, proof, archive
    "candidate": _MADE,
    "passthrough": _MADE,
    "recoded": _CHANGED,
    "verified": _PROVEN,
    "quarantined": Message(ACCESSED, "D", Shape.ACCESS, lifecycle="14"),
    "archived": Message(ACCESSED, "C", Shape.ACCESS, lifecycle="13"),
    "released": Message(ACCESSED, "D", Shape.ACCESS, lifecycle="15"),
    "rechecked": _PROVEN,
    "certified": Message(ACCESSED, "R", Shape.ACCESS, lifecycle="9"),
    "restored": _READ,
    "rebind": _READ,
    "replay": _CHANGED,
    # sending on
    "stego-made": Message(ACCESSED, "C", Shape.ACCESS, lifecycle="7"),
    "forwarded": _SENT,
    "forward-failed": _SENT,
    "dead-letter": _SENT,
    "committed": _SENT,
    "commitment-failed": _SENT,
    "commitment-wanted": _SENT,
    "commitment-answered": _SENT,
    "commitment-waived": _SENT,
    "commitment-asked": Message(TRANSFERRED, "R", Shape.INCOMING, lifecycle="4"),
    "commitment-decided": Message(TRANSFERRED, "R", Shape.INCOMING, lifecycle="4"),
    "commitment-told": Message(TRANSFERRED, "R", Shape.INCOMING, lifecycle="4"),
    "commitment-untold": Message(TRANSFERRED, "R", Shape.INCOMING, lifecycle="4"),
    "probed": Message(ALERT, "E", Shape.ALERT, NETWORK_CONFIGURATION),
    # giving back
    "retrieved": _SENT,
    "admin-search": Message(QUERY, "E", Shape.QUERY),
    "exported": Message(EXPORT, "R", Shape.MEDIA_OUT, lifecycle="10"),
    "imported": Message(IMPORT, "C", Shape.MEDIA_IN, lifecycle="2"),
    # destroying
    "shred-begun": Message(DELETED, "D", Shape.ACCESS, lifecycle="14"),
    "shredded": Message(DELETED, "D", Shape.ACCESS, lifecycle="15"),
    # people, machines, the log itself
    "login": Message(USER, "E", Shape.PERSON, LOGIN),
    "login-failed": Message(USER, "E", Shape.PERSON, LOGIN),
    "logout": Message(USER, "E", Shape.PERSON, LOGOUT),
    "token-minted": Message(ALERT, "E", Shape.ALERT, USER_ATTRIBUTES),
    "audit-used": Message(LOG_USED, "R", Shape.LOG),
    "alert-acknowledged": _RESTRICTED,
    # the application
    "started": Message(ACTIVITY, "E", Shape.APPLICATION, START),
    "stopped": Message(ACTIVITY, "E", Shape.APPLICATION, STOP),
    "configured": _CONFIGURED,
    "rebuild-begun": _RESTRICTED,
    "rebuilt": _RESTRICTED,
    "database-restored": _RESTRICTED,
    "archive-damaged": _RESTRICTED,
    "archive-mended": _RESTRICTED,
    "audit-restarted": Message(LOG_USED, "E", Shape.LOG),
    "backup-made": _RESTRICTED,
    "backup-restored": _RESTRICTED,
    "scrubbed": _RESTRICTED,
    "scrub-damaged": _RESTRICTED,
    "scrub-mended": _RESTRICTED,
    "selftest": _RESTRICTED,
    "shadow-begun": _RESTRICTED,
    # keys, and what is done with them by hand
    "key-rotated": _KEYS,
    "key-rewrapped": _KEYS,
    "key-backup": _KEYS,
    "key-backup-purged": _KEYS,
    "key-backup-forgotten": _KEYS,
    "key-restored": _KEYS,
    "key-drill": _KEYS,
    "key-exported": _KEYS,
    "recipient-added": Message(ALERT, "E", Shape.ALERT, OBJECT_ATTRIBUTES),
    "recipient-removed": Message(ALERT, "E", Shape.ALERT, OBJECT_ATTRIBUTES),
    "payload-embedded": _RESTRICTED,
    "payload-extracted": _RESTRICTED,
    "payload-inspected": _RESTRICTED,
    "payload-refused": _RESTRICTED,
}

_NOT_LET_IN: Final = Message(ALERT, "E", Shape.ALERT, NODE_AUTHENTICATION)
_ASKED: Final = Message(QUERY, "E", Shape.QUERY)
_BEGUN: Final = Message(BEGIN, "E", Shape.OUTGOING, lifecycle="11")

#: (event, name of a detail, its value) -> message: one event, more than one meaning. The first that fits counts.
KINDS: Final[Mapping[tuple[str, str, str], Message]] = {
    ("retrieved", "kind", "search"): _ASKED,
    ("retrieved", "kind", "events"): _ASKED,
    ("retrieved", "kind", "corrections"): Message(PATIENT, "R", Shape.ACCESS, lifecycle="6"),
    ("retrieved", "source", "c-get"): _BEGUN,
    ("retrieved", "source", "c-move"): _BEGUN,
    ("refused", "source", "c-find"): _ASKED,
    ("refused", "source", "c-get"): _BEGUN,
    ("refused", "source", "c-move"): _BEGUN,
}


def message_of(event: str, detail: Mapping[str, object]) -> Message:
    """The message of an event. Raises KeyError for one that is not in the table."""
    if event == "refused" and detail.get("address"):
        return _NOT_LET_IN  # an association that was not accepted: nothing was transferred
    for (name, field, value), message in KINDS.items():
        if name == event and detail.get(field) == value:
            return message
    return EVENTS[event]
