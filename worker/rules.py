"""Which rule of the policy an object falls under: by its SOP class and the Modality that its own header states."""

from __future__ import annotations

from collections.abc import Iterable

from gateway.bootstrap import Gateway
from gateway.index_rows import InstanceRow
from gateway.policy import ANY, ArchiveRule, DeliveryRule, Rule
from worker.attributes import Data, read_tolerant
from worker.retrieve import original_bytes

MODALITY = 0x00080060


def modality_of(data: Data) -> str:
    """Modality (0008,0060) of a file, '' where it cannot be read."""
    header = read_tolerant(data)
    return header.ascii(MODALITY)[:16] if header is not None else ""


def archive_rule(gw: Gateway, row: InstanceRow, data: Data) -> ArchiveRule:
    """The rule under which `data`, the file as received, is archived; it says how to code, too."""
    modality = modality_of(data) if _asks_for_modality(gw.policy.archive) else ""
    rule = gw.policy.archive_rule(row.sop_class, modality)
    return rule.coded(gw.settings.codec_profile, gw.settings.codec_adapt, gw.settings.codec_fit_seconds)


def delivery_rule(gw: Gateway, row: InstanceRow, destination: str) -> DeliveryRule:
    """The rule under which an instance goes to a destination.

    The index may not have read the header yet, or have forgotten it; what was recorded when the object was archived, or
    else the original itself, decides then. Raises as `original_bytes`.
    """
    modality = ""
    if _asks_for_modality(gw.policy.delivery):
        known = row.modality or gw.index.facts(row.id).get("modality")
        modality = known if isinstance(known, str) else modality_of(original_bytes(gw, row))
    return gw.policy.delivery_rule(destination, row.sop_class, modality)


def _asks_for_modality(rules: Iterable[Rule]) -> bool:
    return any(ANY not in rule.modality for rule in rules)
