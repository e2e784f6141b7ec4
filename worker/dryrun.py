"""What a policy would do to one file: everything is really made, with throw-away keys, and nothing is kept."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from gateway.errors import InvalidInstance, Unsupported
from gateway.keys import KeyRing
from gateway.part10 import peek
from gateway.policy import DeliveryRule, Policy, Representation, Rule
from worker.candidate import build_candidate
from worker.identity import Provenance
from worker.routing import route_facts
from worker.rules import modality_of
from worker.stegoframe import Mode
from worker.stegoobject import make_stego
from worker.viewable import candidates, profile_of, viewable_copies

_FACTS = Provenance("1970-01-01T00:00:00+00:00", "dry-run", "DRYRUN", "palimpsest")


@dataclass(frozen=True, slots=True)
class Passed:
    """An earlier rule that did not match, and the first condition that was not met."""

    rule: str
    condition: str


@dataclass(frozen=True, slots=True)
class Archived:
    """The archive object that would be made. form: CODED or PASSTHROUGH (then `reason` says why); size in bytes.

    global_part: both its lengths (`worker.stacking.global_part`). not_tried: names of recipients, whose keys this trial
    does not use; each makes the object a little larger.
    """

    rule: str
    passed: tuple[Passed, ...]
    form: str
    reason: str
    coder: str
    carrier: str
    size: int
    payload_bytes: int
    global_part: dict[str, int]
    not_tried: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Tried:
    """One form. reason: why it cannot be made, '' if it can. size: bytes.

    Of an image that carries, against the original: changed samples, psnr (dB), max_change; restored: it gave the file
    back. syntax: UID of the transfer syntax that a viewable copy would have.
    """

    representation: str
    reason: str
    size: int | None = None
    changed: int | None = None
    psnr: float | None = None
    max_change: int | None = None
    restored: bool | None = None
    syntax: str = ""


@dataclass(frozen=True, slots=True)
class Routed:
    """Where it would go. found: what the routing rules looked at."""

    rule: str
    passed: tuple[Passed, ...]
    found: Mapping[str, str]
    destinations: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Delivered:
    """What would go to one destination: `sent` is '' if nothing would, and a dead letter is left with the reason.

    routed: False where the routing rules do not send it there at all, and this is what would be if they did.
    """

    destination: str
    routed: bool
    rule: str
    passed: tuple[Passed, ...]
    tried: tuple[Tried, ...]
    sent: str


@dataclass(frozen=True, slots=True)
class DryRun:
    """What would happen. sop_class: UID; modality: '' if the header has none; size: bytes of the file."""

    sop_class: str
    modality: str
    size: int
    archived: Archived
    routed: Routed
    delivered: tuple[Delivered, ...]


def dry_run(data: bytes, policy: Policy, destinations: Sequence[str], calling_ae: str = "") -> DryRun:
    """Take one received file through the policy. calling_ae: who would have sent it.

    Raises InvalidInstance for what the gateway would not take in.
    """
    found = {"sop_class": str(peek(data).sop_class_uid), "modality": modality_of(data)}
    routed = _routed(policy, route_facts(data, found["sop_class"], calling_ae), destinations)
    with _throwaway_ring() as ring:
        archived = _archived(data, policy, ring, found)
        delivered = [
            _delivered(data, policy, ring, found, name, name in routed.destinations, archived.size)
            for name in destinations
        ]
    return DryRun(**found, size=len(data), archived=archived, routed=routed, delivered=tuple(delivered))


def _routed(policy: Policy, found: Mapping[str, str], destinations: Sequence[str]) -> Routed:
    rule = policy.route_rule(found)
    return Routed(rule.name, _passed(policy.route, rule, found), found, rule.chosen(destinations))


@contextmanager
def _throwaway_ring() -> Iterator[KeyRing]:
    with tempfile.TemporaryDirectory(prefix="palimpsest-dry-run-") as folder:
        yield KeyRing.load_or_create(Path(folder) / "keys")


def _archived(data: bytes, policy: Policy, ring: KeyRing, found: Mapping[str, str]) -> Archived:
    rule = policy.archive_rule(**found)
    tried = rule.model_copy(update={"recipients": (), "cms": ()})
    made = build_candidate(data, _FACTS, ring, rule=tried)
    return Archived(
        rule.name, _passed(policy.archive, rule, found), str(made.form), made.reason, made.coder, made.carrier,
        len(made.envelope), made.payload_bytes, dict(made.global_part),
        tuple(dict.fromkeys((*rule.recipients, *rule.cms))),
    )  # fmt: skip


def _delivered(
    data: bytes, policy: Policy, ring: KeyRing, found: Mapping[str, str], destination: str, routed: bool,
    envelope_size: int,
) -> Delivered:  # fmt: skip
    rule = policy.delivery_rule(destination, **found)
    tried: list[Tried] = []
    for form in rule.attempts:
        one = Tried(form, "", envelope_size) if form == "envelope" else _tried(data, ring, rule, form)
        tried.append(one)
        if not one.reason:
            break
    passed = _passed(policy.delivery, rule, {**found, "destination": destination})
    sent = tried[-1].representation if not tried[-1].reason else ""
    return Delivered(destination, routed, rule.name, passed, tuple(tried), sent)


def _tried(data: bytes, ring: KeyRing, rule: DeliveryRule, form: Representation) -> Tried:
    """A viewable form. What the destination accepts is not asked: the first syntax that can be made stands for all."""
    if form in ("self-contained", "hidden"):
        return _carrying(data, ring, rule, form)
    try:
        found = peek(data)
        syntaxes = candidates(found.sop_class_uid, found.transfer_syntax, rule, None)
        made = next(viewable_copies(data, form, rule, ring.pseudonym_key(), syntaxes))
    except (Unsupported, InvalidInstance) as error:
        return Tried(form, error.reason)
    return Tried(form, "", len(made.part10), syntax=made.syntax)


def _carrying(data: bytes, ring: KeyRing, rule: DeliveryRule, mode: Mode) -> Tried:
    try:
        made = make_stego(data, _FACTS, ring, mode=mode, profile=profile_of(rule), side=rule.restoration)
    except (Unsupported, InvalidInstance) as error:
        return Tried(mode, error.reason)
    report = made.report
    # what does not restore is an IntegrityError of make_stego's, and ends the dry run as it would end the delivery
    return Tried(mode, "", len(made.part10), report.changed, report.psnr, report.max_change, True)


def _passed(rules: Sequence[Rule], chosen: Rule, found: Mapping[str, str]) -> tuple[Passed, ...]:
    passed = []
    for rule in rules:
        if rule is chosen:
            break
        passed.append(Passed(rule.name, rule.mismatch(**found)))
    return tuple(passed)
