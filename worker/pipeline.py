"""One instance from RECEIVED to ARCHIVED: candidate, proof by another process, archive, each step committed before
the next.

Invariants
- The row is the truth.  Every step reads the row, does its work, and commits; a kill between two steps repeats one
step.
- Candidate digest and wrapped keys are committed before the archive put, and a retry uses the stored candidate: a
  write-once archive therefore never sees two different objects under one key.
- Attempts are counted by the claim, before work.  A file that kills its worker, while it is coded or while it is
  proven, goes on as PASSTHROUGH after `settings.max_attempts` claims, and PASSTHROUGH never touches the codec.
- The codec's weights are in the archive, read back, before anything is coded with them (worker/weightobject.py).
- Only what was proven reaches the archive.  A candidate that fails its proof is quarantined with the reason, and the
  original goes on as PASSTHROUGH; a PASSTHROUGH candidate is proven like any other.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from hashlib import sha256
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Protocol

from gateway import metrics, steps
from gateway.archive import archive_key
from gateway.bootstrap import Gateway
from gateway.errors import (
    IntegrityError,
    LeaseLost,
    NotFound,
    OutOfResources,
    PalimpsestError,
    Unavailable,
    Unsupported,
)
from gateway.index_rows import CandidateFacts, InstanceRow
from gateway.instance import Form, State
from gateway.keyuse import note_use, used_keys
from gateway.part10 import EXPLICIT_BE, EXPLICIT_LE, IMPLICIT_LE
from gateway.policy import ArchiveRule
from worker.backlog import in_a_hurry
from worker.candidate import Candidate, build_candidate, build_passthrough
from worker.identity import Provenance
from worker.leases import Beat, backoff_seconds, heartbeat
from worker.routing import destinations_of
from worker.rules import archive_rule, modality_of
from worker.verify import VerifyReport
from worker.weightobject import archive_weights, needed_weights, require_archived

__all__ = [
    "GroupProver", "Prover", "Work", "archive_stored", "candidate_facts", "carry_claimed", "decoders_of", "disproof",
    "process_instance", "proof_facts", "quarantine", "record_failure", "set_candidates", "verified",
]  # fmt: skip

OUT_OF_RESOURCES_SECONDS = 60.0
INTEGRITY_SECONDS = 900.0  # nothing heals by itself: an alert is up, a person acts, a rare retry notices
CRASHED = "worker-crashed"
NATIVE_SYNTAXES = frozenset({IMPLICIT_LE, EXPLICIT_LE, EXPLICIT_BE})
NEEDS_A_PERSON = (IntegrityError, NotFound, Unsupported)  # no retry heals these: an alert, and a rare look
#: retried, because a person mends it and the object is not to blame; until then somebody should know
KEY_TROUBLE = ("patient-key-lost", "patient-key-damaged", "unknown-recipient", "keys-missing", "keys-corrupt")
UNGROUPED = "ungrouped-"  # prefix of the reason under which an instance leaves its group, to go by itself
UNPROVEN = "unproven-"  # prefix of the reason under which an original goes on whole after a failed proof


class Prover(Protocol):
    """What proves a candidate: `worker.verify.Verifier`, or several of them."""

    def check(self, envelope: bytes, member: int | None = None) -> VerifyReport:
        """See `worker.verify.Verifier.check`."""


class GroupProver(Prover, Protocol):
    """What proves the candidates of groups, too."""

    def check_group(self, envelope: bytes) -> list[VerifyReport]:
        """See `worker.verify.Verifier.check_group`."""


@dataclass(frozen=True, slots=True)
class Work:
    """What every step is given: the claimed row as it was just read, and who holds it."""

    gw: Gateway
    verifier: Prover
    row: InstanceRow
    owner: str


def process_instance(gw: Gateway, verifier: Prover, instance_id: int, owner: str) -> str:
    """Carry one instance as far as ARCHIVED; returns its state, or 'not-claimed' if there is nothing to do for us.

    Raises what went wrong; the caller hands that to `record_failure`, which decides when to try again.
    """
    row = gw.index.claim(instance_id, owner, gw.settings.lease_seconds)
    return "not-claimed" if row is None else carry_claimed(gw, verifier, row, owner)


def carry_claimed(gw: Gateway, verifier: Prover, row: InstanceRow, owner: str) -> str:
    """As `process_instance`, of a row that `owner` has just claimed."""
    lease = gw.settings.lease_seconds
    with heartbeat(lambda: gw.index.heartbeat(row.id, owner, lease), lease) as beat:
        row = _run_steps(gw, verifier, row, owner, beat)
    return str(row.state)


def _run_steps(gw: Gateway, verifier: Prover, row: InstanceRow, owner: str, beat: Beat) -> InstanceRow:
    while step := STEPS.get(row.state):
        beat.check()
        began, before = steps.now(), row.state
        with used_keys():  # the step's own audit events name them
            step(Work(gw, verifier, row, owner))
        row = gw.index.get(row.id)
        steps.done(NAMES[before], [row], began, "ok" if row.state != State.RECEIVED else "unproven")
    return row


def make_candidate(work: Work) -> None:
    """RECEIVED -> CANDIDATE: code the object, or seal it whole if it cannot be coded or has crashed its workers."""
    row, error = work.row, work.row.last_error or CRASHED
    if row.attempts > work.gw.settings.max_attempts or error.startswith(UNPROVEN):
        _pass_through(work, error)
        return
    archive_weights(work.gw.archive)
    data = work.gw.spool.map(row.digest)  # frames are read from it as they are coded, never all at once
    rule = archive_rule(work.gw, row, data)
    quick = in_a_hurry(work.gw, row)
    made = build_candidate(data, provenance(work.gw, row), work.gw.keys, rule=rule, quick=quick)
    set_candidates([work], [made], [(rule, modality_of(data))], quick=quick)


def prove(work: Work) -> None:
    """CANDIDATE -> VERIFIED, if the verifier's process rebuilds what was received from nothing but the candidate's
    bytes.
    """
    envelope = _stored_candidate(work.gw, work.row)
    if envelope is None:  # lost or damaged on disk: the original is still in the spool
        make_candidate(work)
        return
    problem = _why_unproven(work, envelope)
    if problem is None:
        return
    quarantine(work, envelope, problem)
    reason = (UNPROVEN if work.row.member is None else UNGROUPED) + problem
    work.gw.index.drop_candidate(work.row.id, work.owner, reason)
    _forget_candidate(work.gw, work.row)
    if work.row.form == Form.PASSTHROUGH:
        raise IntegrityError("passthrough-unproven", "a sealed whole file did not restore to what was received")


def _why_unproven(work: Work, envelope: bytes) -> str | None:
    """None once the proof succeeded and was committed; else what went wrong."""
    if work.row.form == Form.CODED and work.row.attempts > work.gw.settings.max_attempts:
        return work.row.last_error or CRASHED  # proving it killed its workers, or outlasted them
    member = work.row.member
    report = work.verifier.check(envelope) if member is None else work.verifier.check(envelope, member)
    problem = disproof(work, report)
    if problem is None:
        verified(work, report)
    return problem


def verified(work: Work, report: VerifyReport) -> None:
    """Commit a proof that succeeded."""
    for key_id in report.keys.split():
        note_use("proof", key_id)
    work.gw.index.set_verified(work.row.id, work.owner, proof_facts(report, work.row.form))


def archive(work: Work) -> None:
    """VERIFIED -> ARCHIVED: put, read back from the archive, compare digests, commit with the forwards this starts."""
    gw, row = work.gw, work.row
    envelope = _stored_candidate(gw, row)
    if envelope is None:
        make_candidate(work)
        return
    archive_stored([work], envelope)


def archive_stored(works: Sequence[Work], envelope: bytes, before: Callable[[int], object] = lambda _: None) -> None:
    """The same for all instances of one object whose candidate was read. before: called with each id at its turn."""
    gw, row = works[0].gw, works[0].row
    digest, key = str(row.candidate_digest), archive_key(str(row.envelope_uid))
    require_archived(gw.archive, envelope)
    gw.archive.put(key, envelope, digest)
    if sha256(gw.archive.get(key, digest)).hexdigest() != digest:
        raise IntegrityError("archive-read-back", "the archive gave back other bytes than it was given")
    for work in works:
        before(work.row.id)
        size = work.row.candidate_size or len(envelope)
        gw.index.set_archived(
            work.row.id, work.owner, key=key, digest=digest, size=size, destinations=destinations_of(gw, work.row)
        )  # fmt: skip
        steps.archived(gw.index.get(work.row.id))
    _forget_candidate(gw, row)


def _forget_candidate(gw: Gateway, row: InstanceRow) -> None:
    """Delete a stored candidate, unless another instance of its group is still on its way."""
    digest = str(row.candidate_digest)
    if row.member is None or not gw.index.candidate_needed(digest):
        gw.candidates.remove(digest)


def _pass_through(work: Work, reason: str) -> None:
    """Seal the whole file as received; the codec is not touched."""
    data = work.gw.spool.read(work.row.digest)
    rule = archive_rule(work.gw, work.row, data)
    candidate = build_passthrough(data, provenance(work.gw, work.row), work.gw.keys, reason, rule=rule)
    set_candidates([work], [candidate], [(rule, modality_of(data))])


def set_candidates(
    works: Sequence[Work], made: Sequence[Candidate], told: Sequence[tuple[ArchiveRule, str]], *, quick: bool = False
) -> list[InstanceRow]:
    """The bytes durably first, then digest, wrapped keys and figures in one commit. told: rule and modality of each.

    quick: made in a hurry, to be coded anew when there is time. Several candidates are those of one group: their bytes
    are the same.
    """
    gw, digest = works[0].gw, works[0].gw.candidates.put(made[0].envelope)
    weights = sorted(each.sha256 for each in needed_weights(made[0].envelope))
    facts = {
        work.row.id: candidate_facts(digest, candidate, weights, *each, quick=quick)
        for work, candidate, each in zip(works, made, told, strict=True)
    }
    return gw.index.set_candidates(works[0].owner, facts)


def candidate_facts(
    digest: str, candidate: Candidate, weights: list[str], rule: ArchiveRule, modality: str, *, quick: bool = False
) -> CandidateFacts:
    """What the index is told of a candidate. digest: of its bytes; weights: digests of those that it needs."""
    return CandidateFacts(
        digest=digest,
        size=candidate.size,
        form=candidate.form,
        reason=candidate.reason or None,
        envelope_uid=candidate.envelope_uid,
        coder=candidate.coder or None,
        carrier=candidate.carrier,
        payload_bytes=candidate.payload_bytes,
        codec_bytes=candidate.codec_bytes,
        raw_pixel_bytes=candidate.raw_pixel_bytes,
        facts={
            "frames": candidate.frames,
            "pixel_sha256": candidate.pixel_sha256,
            "nonpixel_sha256": candidate.nonpixel_sha256,
            "rule": rule.name,
            "modality": modality,
            "software": software(),
            "shared_with": list(candidate.shared_with),
            "pixel_wraps": [wrap.hex() for wrap in candidate.pixel_wraps],
            "global_part": dict(candidate.global_part),
            "weights": weights,
        },
        wraps=[wrap.hex() for wrap in candidate.wraps],
        patient_key=candidate.patient_key or None,
        member=candidate.member,
        quick=quick and candidate.form is Form.CODED,
    )


def _stored_candidate(gw: Gateway, row: InstanceRow) -> bytes | None:
    """The candidate as stored and recorded, or the archive's copy of it if a kill came after the put; else None.

    None also when the patient was shredded meanwhile: nobody would ever open it, and the source is still here.
    """
    if row.patient_key is not None and gw.keys.patients.destroyed(row.patient_key):
        return None
    digest = str(row.candidate_digest)
    key = archive_key(str(row.envelope_uid))
    reads: tuple[Callable[[], bytes], ...] = (
        lambda: gw.candidates.read(digest),
        lambda: gw.archive.get(key, digest),
    )
    for read in reads:
        try:
            return read()
        except (NotFound, IntegrityError):
            continue
    return None


@cache
def software() -> str:
    """Name and version of this program, as the record names it."""
    try:
        return f"palimpsest {version('palimpsest')}"
    except PackageNotFoundError:  # run from a source tree that was never installed
        return "palimpsest (source tree)"


def provenance(gw: Gateway, row: InstanceRow) -> Provenance:
    """What the record says of the receipt; the program is the one that archived the object, once it is archived."""
    received_at = datetime.fromtimestamp(row.received_at, tz=UTC).isoformat(timespec="microseconds")
    program = gw.index.facts(row.id).get("software")
    return Provenance(
        received_at=received_at,
        source=row.source,
        calling_ae=row.calling_ae,
        software=program if isinstance(program, str) else software(),
    )


def disproof(work: Work, report: VerifyReport) -> str | None:
    """Why the report does not prove the candidate; None if it does.

    Uncompressed input: the rebuilt file is the received one.  Losslessly compressed input: the record in the object
    names the received file, and every pixel and every non-pixel byte is what the encoder was given.
    """
    row = work.row
    if not report.ok:
        return report.reason or "verifier-refused"
    if report.recorded_sha256 != row.digest:
        return "other-object"
    if report.sha256 == row.digest:
        return None
    if row.form == Form.PASSTHROUGH or row.transfer_syntax in NATIVE_SYNTAXES:
        return "file-digest"
    facts = work.gw.index.facts(row.id)
    if report.pixel_sha256 != facts.get("pixel_sha256"):
        return "pixel-digest"
    if report.nonpixel_sha256 != facts.get("nonpixel_sha256"):
        return "nonpixel-digest"
    return None


def proof_facts(report: VerifyReport, form: Form | None) -> dict[str, Any]:
    """What is recorded of a proof: the digest that the restored file will always have, how, and the seconds it took."""
    return {
        "restored_sha256": report.sha256,
        "verify_seconds": round(report.seconds, 3),
        "decoders": decoders_of(report, form),
        "verifier": software(),
    }


def decoders_of(report: VerifyReport, form: Form | None) -> list[str]:
    """Which decoders rebuilt the frames: numba's, and the NumPy reference; none for a file that was sealed whole."""
    if form == Form.PASSTHROUGH:
        return []
    return ["numba", "reference"] if report.reference else ["numba"]


def quarantine(work: Work, envelope: bytes, problem: str) -> None:
    """Keep the failed candidate and the reason for a person to look at; sealed bytes and machine words only.

    One of each form per instance, the newest: what fails again and again must not fill the disk.
    """
    row = work.row
    metrics.PROOFS_FAILED.labels(reason=problem).inc()
    stem = work.gw.settings.quarantine_dir / f"{row.id}-{str(row.form).lower()}"
    stem.with_suffix(".dcm").write_bytes(envelope)
    story = {"instance": row.id, "reason": problem, "form": row.form, "coder": row.coder, "software": software()}
    stem.with_suffix(".json").write_text(json.dumps(story, indent=1), encoding="utf-8")
    then = "the original goes on whole" if row.member is None else "its instances go on by themselves"
    message = f"a candidate did not restore to what was received ({problem}); {then}"
    work.gw.index.alert_raise("candidate-quarantined", f"instance {row.id}", message, "critical")


STEPS: Mapping[State, Callable[[Work], None]] = {
    State.RECEIVED: make_candidate,
    State.CANDIDATE: prove,
    State.VERIFIED: archive,
}
#: as metrics and traces name them
NAMES: Mapping[State, str] = {State.RECEIVED: "encode", State.CANDIDATE: "verify", State.VERIFIED: "archive"}


def record_failure(gw: Gateway, instance_id: int, owner: str, error: BaseException) -> None:
    """Give the row back after a failure, due again when its class of error says so (see `gateway.errors`)."""
    if isinstance(error, LeaseLost):
        return
    reason = failure_reason(error)
    row = gw.index.get(instance_id)
    gw.index.release_claim(
        instance_id,
        owner,
        due_at=time.time() + _delay(error, row.attempts),
        reason=reason,
        count_attempt=not isinstance(error, PalimpsestError),  # ours to mend: the file is not to blame
    )
    if isinstance(error, NEEDS_A_PERSON):
        gw.index.alert_raise(reason, f"instance {instance_id}", str(error), "critical")
    elif isinstance(error, Unavailable) and reason in KEY_TROUBLE:
        gw.index.alert_raise(reason, "key ring", error.message, "critical")
    elif row.attempts > gw.settings.max_attempts and not isinstance(error, PalimpsestError):
        message = "an instance cannot be archived, not even whole; it stays in the spool and is tried again"
        gw.index.alert_raise("stuck", f"instance {instance_id}", message, "critical")


def failure_reason(error: BaseException) -> str:
    """A machine word for any error: our own reasons, or a name for what the runtime raised. Never the error's text."""
    if isinstance(error, PalimpsestError):
        return error.reason
    names: Mapping[str, str] = {"MemoryError": "out-of-memory", "SoftTimeLimitExceeded": "time-limit"}
    return names.get(type(error).__name__, "internal-error")


def _delay(error: BaseException, attempts: int) -> float:
    """Seconds until the next try."""
    backoff = backoff_seconds(attempts)
    if isinstance(error, NEEDS_A_PERSON):
        return INTEGRITY_SECONDS + backoff
    if isinstance(error, OutOfResources):
        return OUT_OF_RESOURCES_SECONDS + backoff
    if isinstance(error, Unavailable):
        return max(error.retry_after, backoff)
    return backoff
