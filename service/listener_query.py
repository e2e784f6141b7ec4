"""C-FIND as SCP, Patient and Study Root (PS3.4 C.4.1), and what the listener negotiates for Query/Retrieve.

The matching is the index's own, shared with QIDO-RS. Matches are read a page at a time and sent as fast as the peer
takes them; between pages a C-CANCEL is heard.
"""

from __future__ import annotations

import logging
import time
from typing import Any, Final

from pydicom.charset import python_encoding
from pydicom.datadict import dictionary_VR, tag_for_keyword
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset

from gateway.bootstrap import Gateway
from service.listener_exchange import (
    CANCELLED,
    OUT_OF_RESOURCES,
    PENDING,
    PENDING_PARTIAL,
    SUCCESS,
    Exchange,
    install,
    wait_room,
)
from service.listener_identifier import INDEX_LEVEL, MODELS, UNIQUE, Find, for_find
from service.listener_retrieve import on_get, on_move
from service.trail import record

__all__ = ["QUERY_SYNTAXES", "find_response", "on_async_operations", "on_extended", "on_find", "on_requested_query"]

QUERY_SYNTAXES: Final = ("1.2.840.10008.1.2.1", "1.2.840.10008.1.2")
UTF8: Final = "ISO_IR 192"
#: Responses between two pauses in which the upper layer may read: it reads only when nothing is left to send.
BURST: Final = 64
PAUSE_SECONDS: Final = 0.002
RELATIONAL, COMBINED, FUZZY = 0, 1, 2  # bytes of C-FIND's application information (PS3.4 C.5.1.1)
#: What is agreed to when it is proposed: of C-FIND relational queries, combined date and time, fuzzy names; no time
#: zone adjustment, no enhanced multi-frame conversion. Of C-MOVE and C-GET relational retrieval.
_AGREED: Final = {"find": (1, 1, 1, 0, 0), "move": (1, 0), "get": (1, 0)}
_MAX_INTEGER_TEXT: Final = 12  # of an IS (PS3.5 6.2)

log = logging.getLogger(__name__)


def on_requested_query(event: Any, gateway: Gateway) -> None:
    """A new association: its queries and retrieves are served here."""
    install(event.assoc, gateway, {"find": on_find, "move": on_move, "get": on_get})


def on_extended(event: Any) -> dict[str, bytes]:
    """SOP Class Extended Negotiation (PS3.7 D.3.3.5, PS3.4 C.5): the options of those proposed that we have."""
    answer = {}
    for uid, proposed in event.app_info.items():
        if (model := MODELS.get(str(uid))) is not None:
            agreed = _AGREED[model[1]]
            answer[uid] = bytes(value & wanted for value, wanted in zip(agreed, proposed, strict=False))
    return answer


def on_async_operations(event: Any) -> tuple[int, int]:
    """Asynchronous Operations Window (PS3.7 D.3.3.3): whatever is proposed becomes one operation at a time."""
    return 1, 1


def on_find(exchange: Exchange) -> None:
    """Serve one C-FIND. Raises PalimpsestError before the first response, AssociationLost."""
    settings, index = exchange.gateway.settings, exchange.gateway.index
    find = for_find(exchange.root, exchange.identifier(), relational=exchange.option(RELATIONAL))
    level = INDEX_LEVEL[find.level]
    fuzzy, combined = exchange.option(FUZZY), exchange.option(COMBINED)
    matches = index.matches(level, find.filters, settings.query_max_matches, fuzzy=fuzzy, combined=combined)
    record(
        exchange.gateway, "retrieved", actor=exchange.calling, outcome="success", kind="search", source="c-find",
        study_uid=_one_study(find), level=level, count=matches.count,
    )  # fmt: skip
    status = PENDING_PARTIAL if find.partial else PENDING
    for number, row in enumerate(matches.rows):
        if number % BURST == BURST - 1:
            wait_room(exchange.association, 0)
            time.sleep(PAUSE_SECONDS)
        if exchange.cancelled:
            exchange.respond(CANCELLED)
            return
        exchange.respond(status, _encoded(exchange, find, row))
    if matches.more:
        exchange.respond(OUT_OF_RESOURCES, comment=f"more than {settings.query_max_matches} matches: ask for less")
        return
    exchange.respond(SUCCESS)


def _one_study(find: Find) -> str | None:
    """The study that was asked for, if it is one: its pseudonym goes into the trail."""
    asked = find.filters.get("StudyInstanceUID")
    return asked if asked and "," not in asked else None


def _encoded(exchange: Exchange, find: Find, row: dict[str, Any]) -> bytes:
    """One match as an Identifier. Values that cannot be written are left empty; unique keys always can."""
    title = exchange.gateway.settings.ae_title
    try:
        return exchange.encoded(find_response(find, row, title))
    except ValueError:
        log.warning("a match was answered with its unique keys only", extra={"reason": "unwritable-value"})
        return exchange.encoded(find_response(find, {key: row.get(key) for key in UNIQUE.values()}, title))


def find_response(find: Find, row: dict[str, Any], ae_title: str) -> Dataset:
    """The Identifier of one Pending response (PS3.4 C.4.1.1.3.2): what was asked for, unique keys, where to get it."""
    dataset = Dataset()
    texts = []
    for keyword in find.returned:
        value = row.get(keyword)
        texts.append(str(value or ""))
        _add(dataset, keyword, value)
    dataset.QueryRetrieveLevel = find.level
    dataset.RetrieveAETitle = ae_title
    dataset.InstanceAvailability = "ONLINE"
    dataset.pop("SpecificCharacterSet", None)
    if not all(text.isascii() for text in texts):
        dataset.SpecificCharacterSet = _character_set(find.charset, "".join(texts))
    return dataset


def _character_set(asked: str, text: str) -> str:
    """The set that was asked in, if it can say all of this text; else UTF-8. Never one with code extensions."""
    if asked in python_encoding and not asked.startswith("ISO 2022"):
        try:
            text.encode(python_encoding[asked])
        except (LookupError, UnicodeEncodeError):
            return UTF8
        return asked or UTF8
    return UTF8


def _add(dataset: Dataset, keyword: str, value: Any) -> None:
    tag = tag_for_keyword(keyword)
    if tag is None:
        return
    vr = dictionary_VR(tag)
    if vr == "IS" and value is not None and len(str(value)) > _MAX_INTEGER_TEXT:
        value = None  # a number that no IS holds: the file's own value was no integer string either
    try:
        dataset.add(DataElement(tag, vr, value if value != [] else None, validation_mode=0))
    except (ArithmeticError, TypeError, ValueError):
        dataset.add(DataElement(tag, vr, None))
