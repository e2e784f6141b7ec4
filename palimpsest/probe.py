"""`palimpsest probe`: send test objects to a destination, ask for them back by every way it offers, compare, and keep
what was found: from then on nothing is sent there in a form that was seen not to survive.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from gateway.destination import Node
from gateway.errors import InvalidInstance, NotDicom, Unavailable
from gateway.part10 import peek
from gateway.probe_result import Finding, ProbeResult, Verdict
from gateway.settings import Destination, Settings
from palimpsest.probe_dimse import DimseReader, NotOffered
from worker.canaries import Canary, canaries
from worker.compare import difference
from worker.dicomweb_peer import DicomWebPeer, PeerError
from worker.envelope import IMPLEMENTATION_VERSION
from worker.sender import Delivery, open_sender, tls_context

__all__ = ["run_probe"]

FOLDER = "palimpsest-probe"  # before the names of what is put into folders and buckets
TRIES = 4  # of reading: some archives index what they took a little later
PAUSE_SECONDS = 0.5
MISSING = "missing"

Read = Callable[[Canary], bytes | bool | None]
"""A way of reading back: the object, or whether it is known; None or False: it is not there. Raises NotOffered."""


@dataclass(frozen=True, slots=True)
class Sent:
    """A canary and what became of it."""

    canary: Canary
    delivery: Delivery


def run_probe(
    settings: Settings,
    destination: Destination,
    *,
    receive: tuple[str, int] | None = None,
    keep: bool = False,
    note: Callable[[str], object] = lambda _: None,
) -> ProbeResult:
    """Probe one destination. receive: (AE title, port) for C-MOVE to us; keep: take nothing away; note: progress.

    Raises Unavailable when the destination cannot be reached at all: then nothing was learned.
    """
    sent = _send_all(settings, destination, note)
    with _ways(settings, destination, receive) as (ways, peer):
        reads, offered = _read_all(sent, ways, note)
    left = _left(sent) if keep else _clean_up(settings, destination, sent)
    findings = tuple(_finding(each, reads[each.canary.uid]) for each in sent)
    return ProbeResult(
        destination.name, destination.place, time.time(), IMPLEMENTATION_VERSION, peer, offered, findings, left
    )


def _send_all(settings: Settings, destination: Destination, note: Callable[[str], object]) -> list[Sent]:
    """Every canary once. A peer that breaks over one gets the next over a new connection."""
    sent: list[Sent] = []
    for canary in canaries():
        with open_sender(settings, destination) as sender:
            delivery = sender.send(_name(canary), canary.part10)
        note(f"{canary.name}: {delivery.reason}")
        if not sent and delivery.outcome == "down":
            raise Unavailable(delivery.reason, f"'{destination.name}' cannot be reached ({delivery.reason})")
        sent.append(Sent(canary, delivery))
    return sent


def _name(canary: Canary) -> str:
    return f"{FOLDER}/{canary.uid}.dcm"


def _read_all(
    sent: Sequence[Sent], ways: Mapping[str, Read], note: Callable[[str], object]
) -> tuple[dict[str, dict[str, str]], dict[str, str]]:
    """(uid -> way -> verdict, way -> '' or why it counts as not offered)."""
    reads: dict[str, dict[str, str]] = {each.canary.uid: {} for each in sent}
    offered: dict[str, str] = {}
    taken = [each.canary for each in sent if each.delivery.outcome == "done"]
    for way, read in ways.items():
        found, why = _read_way(read, taken)
        if all(verdict == MISSING for verdict in found.values()):
            offered[way] = why or "gives-nothing-back"
            continue
        offered[way] = ""
        note(f"{way}: {sum(each == 'equal' for each in found.values())} of {len(found)} equal")
        for uid, verdict in found.items():
            reads[uid][way] = verdict
    return reads, offered


def _read_way(read: Read, taken: Sequence[Canary]) -> tuple[dict[str, str], str]:
    """(uid -> 'equal', 'missing' or how it differs; why the way is not offered, if it said so)."""
    found, why = dict.fromkeys((canary.uid for canary in taken), MISSING), ""
    for attempt in range(TRIES):
        wanted = [canary for canary in taken if found[canary.uid] == MISSING]
        if attempt and wanted:
            time.sleep(PAUSE_SECONDS)
        for canary in wanted:
            try:
                back = read(canary)
            except NotOffered as error:
                why = str(error)
                if len(wanted) == len(taken):  # nothing came yet: not even the plainest object is given by this way
                    return found, why
                continue
            if back:
                found[canary.uid] = "equal" if isinstance(back, bool) else difference(canary.part10, back) or "equal"
    return found, why


def _finding(sent: Sent, reads: Mapping[str, str]) -> Finding:
    canary, delivery = sent.canary, sent.delivery
    verdict: Verdict = "proven"
    if delivery.outcome != "done":
        verdict = "refused"
    elif not reads:
        verdict = "stored"
    elif MISSING in reads.values():
        verdict = "lost"
    elif set(reads.values()) != {"equal"}:
        verdict = "altered"
    return Finding(canary.sop_class, canary.syntax, canary.name, delivery.reason, dict(reads), verdict)


# --- ways of reading back ---


@contextmanager
def _ways(
    settings: Settings, destination: Destination, receive: tuple[str, int] | None
) -> Iterator[tuple[dict[str, Read], str]]:
    """All that the destination's kind and addresses allow, and what the peer calls itself."""
    ways: dict[str, Read] = {}
    peer = ""
    with ExitStack() as stack:
        if node := _node(destination):
            tls = tls_context(settings, destination) if destination.kind == "dicom" else None
            reader = DimseReader(node, settings.ae_title, min(settings.network_timeout_seconds, 30.0), tls, receive)
            stack.enter_context(reader.listening())
            ways |= {"c-find": reader.find, "c-get": reader.get}
            if receive is not None:
                ways["c-move"] = reader.move
            peer = reader.peer()
        if destination.url:
            web = stack.enter_context(DicomWebPeer(destination, settings.network_timeout_seconds))
            ways |= {"qido": lambda canary: _qido(web, canary), "wado": lambda canary: _wado(web, canary)}
        if destination.kind == "s3":
            ways["s3"] = lambda canary: _bucket(settings, destination, canary)
        if destination.path:
            ways["folder"] = _folder(Path(destination.path))
        yield ways, peer


def _node(destination: Destination) -> Node | None:
    return destination if destination.kind == "dicom" else destination.dimse


def _qido(web: DicomWebPeer, canary: Canary) -> bool:
    try:
        return web.knows(peek(canary.part10))
    except PeerError as error:
        raise NotOffered(error.reason) from None


def _wado(web: DicomWebPeer, canary: Canary) -> bytes | None:
    try:
        return web.fetch(peek(canary.part10), 4 * len(canary.part10) + (1 << 20))
    except PeerError as error:
        if error.down or error.status in (401, 403, 405, 501):
            raise NotOffered(error.reason) from None
        return None


def _bucket(settings: Settings, destination: Destination, canary: Canary) -> bytes | None:
    from worker.forward_s3 import S3Sender

    with S3Sender(settings, destination) as sender:
        return sender.read(_name(canary), 2 * len(canary.part10))


def _folder(root: Path) -> Read:
    """Files below a folder, whatever the peer calls them, by the UID inside."""

    def read(canary: Canary) -> bytes | None:
        for path in sorted(root.rglob("*"), key=_age):
            try:
                if path.is_file() and peek(path).sop_instance_uid == canary.uid:
                    return path.read_bytes()
            except (NotDicom, InvalidInstance, OSError):
                continue
        return None

    return read


def _age(path: Path) -> float:
    try:
        return -path.stat().st_mtime
    except OSError:
        return 0.0


# --- cleaning up ---


def _left(sent: Sequence[Sent]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(each.canary.study for each in sent if each.delivery.outcome == "done"))


def _clean_up(settings: Settings, destination: Destination, sent: Sequence[Sent]) -> tuple[str, ...]:
    """Take away what can be: files, keys, and studies where the DICOMweb service deletes. Studies that stay."""
    left = list(_left(sent))
    if destination.kind == "filesystem":
        for each in sent:
            (Path(destination.path) / _name(each.canary)).unlink(missing_ok=True)
        return ()
    if destination.kind == "s3":
        from worker.forward_s3 import S3Sender

        with S3Sender(settings, destination) as bucket:
            removed = [bucket.remove(_name(each.canary)) for each in sent]
        return () if all(removed) else tuple(left)
    if destination.url:
        with DicomWebPeer(destination, settings.network_timeout_seconds) as web:
            return tuple(study for study in left if not web.delete_study(study))
    return tuple(left)
