"""Where an object goes: the routing rule that it falls under, by who sent it and what its header shows.

Decided once, in the commit that archives it: a later change of the policy moves nothing that was routed before.
"""

from __future__ import annotations

from collections.abc import Sequence

from gateway.bootstrap import Gateway
from gateway.errors import IntegrityError, NotFound
from gateway.index_rows import InstanceRow
from gateway.policy import ANY, Policy, RouteRule
from worker.attributes import Data, read_tolerant
from worker.retrieve import original_bytes

__all__ = ["asks_for_header", "destinations_of", "route_facts", "routed"]

BODY_PART, STATION, STUDY_DESCRIPTION, MODALITY = 0x00180015, 0x00081010, 0x00081030, 0x00080060
IN_HEADER = ("modality", "body_part", "station", "study_description")


def route_facts(data: Data | None, sop_class: str, calling_ae: str) -> dict[str, str]:
    """What routing rules may ask of a file; '' for what it does not state. data None: nobody asks for its header."""
    header = read_tolerant(data) if data is not None else None
    return {
        "calling_ae": calling_ae.strip(),
        "sop_class": sop_class,
        "modality": header.ascii(MODALITY)[:16] if header is not None else "",
        "body_part": header.ascii(BODY_PART)[:16] if header is not None else "",
        "station": header.ascii(STATION)[:64] if header is not None else "",
        "study_description": header.text(STUDY_DESCRIPTION)[:256] if header is not None else "",
    }


def routed(gw: Gateway, row: InstanceRow) -> tuple[RouteRule, dict[str, str]]:
    """The rule for an instance, and what it was chosen by. Raises as `original_bytes`."""
    data = _header_bytes(gw, row) if asks_for_header(gw.policy) else None
    found = route_facts(data, row.sop_class, row.calling_ae)
    return gw.policy.route_rule(found), found


def destinations_of(gw: Gateway, row: InstanceRow) -> Sequence[str]:
    """Names of the configured destinations that an instance goes to."""
    names = [each.name for each in gw.settings.destinations if each.forward]
    return routed(gw, row)[0].chosen(names) if names else ()


def asks_for_header(policy: Policy) -> bool:
    """Whether a routing rule asks for what stands in an instance's header."""
    return any(ANY not in getattr(rule, name) for rule in policy.route for name in IN_HEADER)


def _header_bytes(gw: Gateway, row: InstanceRow) -> Data:
    try:
        return gw.spool.map(row.digest)
    except (NotFound, IntegrityError):  # released, or damaged: the archive may still have it
        return original_bytes(gw, row)
