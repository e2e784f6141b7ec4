"""A gateway that has seen a day of work and some trouble, made of generated objects: for the admin page's tests and
pictures. No patient in it.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from gateway.alive import Alive
from gateway.archive import archive_key
from gateway.bootstrap import Gateway, build
from gateway.circuit import CircuitState, circuit_path
from gateway.destination import Destination
from gateway.index_rows import CandidateFacts, InstanceRow
from gateway.index_schema import instance
from gateway.index_schema_admin import disk_sample, flow
from gateway.instance import Form
from gateway.jobs import MemoryQueue
from gateway.probe_result import Finding, ProbeResult
from gateway.settings import load_settings
from tests.fakes import part10, take_in

__all__ = ["arrive", "beat", "carry", "demo_gateway", "fill"]

RATIOS = {"CT": 2.9, "MR": 2.3, "CR": 3.4, "US": 1.8, "XA": 2.6}
HALF_HOURS = 48


def demo_gateway(home: Path) -> Gateway:
    """Two destinations, nothing in it yet."""
    destinations = (
        Destination(name="pacs", host="pacs.example", port=11112, ae_title="PACS"),
        Destination(name="research", kind="stow", url="https://research.example/dicomweb"),
    )
    settings = load_settings(home=home, watermark_bytes=1, destinations=destinations)
    gateway = build(settings, queue=MemoryQueue())
    gateway.index._engine = gateway.index._relaxed  # hundreds of commits, and none of them has to outlive power loss
    return gateway


def arrive(gw: Gateway, *, study: str = "1.2.3.100", priority: int = 5, calling_ae: str = "CT1") -> InstanceRow:
    """One generated object at the door."""
    return take_in(gw, part10(study=study), calling_ae=calling_ae, priority=priority).row


def carry(gw: Gateway, row: InstanceRow, modality: str = "CT", to: tuple[str, ...] = ("pacs",)) -> InstanceRow:
    """What the workers do to an object, without its pixels: indexed, coded, proven, archived."""
    return _carried(gw, row, modality, to, lambda seconds: None)


def _carried(
    gw: Gateway, row: InstanceRow, modality: str, to: tuple[str, ...], wait: Callable[[float], None]
) -> InstanceRow:
    wait(0.4)
    gw.index.set_attributes(row.id, {"Modality": modality, "AccessionPseudonym": "D0123456789ABCDE"}, "{}")
    gw.index.claim(row.id, "encode-demo", 60)
    digest = f"{row.id:064x}"
    candidate = CandidateFacts(
        digest=digest, size=max(1, int(row.size / RATIOS.get(modality, 2))), form=Form.CODED, reason=None,
        envelope_uid=f"2.25.{10**30 + row.id}", coder="learned", carrier="segmented", payload_bytes=1544,
        codec_bytes=300, raw_pixel_bytes=64, facts={"frames": 1, "rule": "default", "software": "palimpsest 0.1.0"},
        wraps=[],
    )  # fmt: skip
    wait(1.1)
    gw.index.set_candidate(row.id, "encode-demo", candidate)
    wait(0.3)
    proof = {"restored_sha256": row.digest, "verify_seconds": 0.213, "decoders": ["numba"], "verifier": "palimpsest"}
    gw.index.set_verified(row.id, "encode-demo", proof)
    wait(0.1)
    key = archive_key(candidate.envelope_uid)
    return gw.index.set_archived(row.id, "encode-demo", key, digest, candidate.size, to)


def fill(gw: Gateway) -> dict[str, Any]:
    """A day of work, some trouble; returns numbers that a test asks for."""
    chance = random.Random(7)
    now = time.time()
    names = list(RATIOS)
    clock = [now - 24 * 600.0]
    gw.index.now = lambda: clock[0]

    def wait(seconds: float) -> None:
        clock[0] += seconds * min(30.0, chance.lognormvariate(0.4, 0.9))

    done = []
    for number in range(24):
        clock[0] = now - (24 - number) * 600.0
        row = arrive(gw, study=f"1.2.3.{number % 6}", calling_ae=f"{names[number % 5]}1")
        done.append(_carried(gw, row, names[number % 5], ("pacs",), wait))
    for row in done[:4]:
        gw.index.set_released(row.id)
    clock[0] = now - 500
    for forward in gw.index.forwards()[:8]:
        gw.index.forward_claim(forward.id, "f", 60)
        reason = "sop-class-refused" if forward.id % 2 else "association-rejected"
        gw.index.forward_failed(forward.id, "f", reason, due_at=None)
    for forward in gw.index.forwards()[8:20]:
        gw.index.forward_claim(forward.id, "f", 60)
        gw.index.forward_done(forward.id, "f", "accepted", representation="envelope")
    gw.index.now = time.time
    failing = [arrive(gw) for _ in range(3)]
    for row in failing:
        gw.index.claim(row.id, "w", 60)
        gw.index.release_claim(row.id, "w", due_at=now + 300, reason="archive-unavailable")
    waiting = [arrive(gw, priority=priority) for priority in (0, 0, 5, 5, 5, 5, 8)]
    working = gw.index.claim(waiting[0].id, "encode-1-a", 600)
    _past(gw, chance, now, waiting)
    gw.index.alert_raise("candidate-quarantined", "instance 3", "a candidate did not restore", "critical")
    gw.index.alert_raise("webhook-late", "ris", "webhook 'ris' has not answered for ten minutes", "warning")
    _files(gw, now)
    beat(gw, waiting[0].id)
    gw.index.studies_find()
    gw.index.studies_judge(300.0)
    return {"working": working, "failing": [row.id for row in failing], "done": [row.id for row in done]}


def _past(gw: Gateway, chance: random.Random, now: float, waiting: list[InstanceRow]) -> None:
    """A day's flow and disk samples, and times that lie apart: written as the triggers would have."""
    first = int(now // 300) * 300 - HALF_HOURS * 1800
    buckets, samples = [], []
    for number in range(HALF_HOURS * 6):
        at = first + number * 300
        hour = time.gmtime(at).tm_hour
        came = int(chance.gauss(140 if 7 <= hour < 18 else 18, 12)) if chance.random() > 0.05 else 0
        came = max(0, came) if number >= 12 else 0  # so that a half hour which goes out of the day takes nothing along
        buckets.append(
            {"bucket": at, "modality": "CT", "received": came, "bytes_received": came * 530_000, "archived": came,
             "bytes_in": came * 530_000, "bytes_archived": came * 185_000, "sent": came, "seconds": came * 3.0}
        )  # fmt: skip
        used = 310_000_000_000 + number * 34_000_000
        samples += [
            {"place": place, "bucket": at, "total": total, "free": total - used}
            for place, total in (("spool", 500_000_000_000), ("archive", 4_000_000_000_000))
        ]
    with gw.index.write() as conn:
        conn.execute(flow.delete())  # the triggers' own of the day: too few to see
        conn.execute(flow.insert(), [each for each in buckets if each["bucket"] < now - 300])
        conn.execute(disk_sample.insert(), samples)
        for row, seconds in zip(waiting, (900, 400, 90), strict=False):
            conn.execute(sa.update(instance).where(instance.c.id == row.id).values(received_at=now - seconds))


def _files(gw: Gateway, now: float) -> None:
    """A circuit that is open, a probe, a candidate in quarantine."""
    state = CircuitState(failures=7, open_until=now + 240, reason="association-rejected")
    circuit_path(gw.settings.run_dir, "research").write_text(state.dump())
    pacs = gw.settings.destination("pacs")
    assert pacs is not None
    findings = tuple(
        Finding("1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.1.2.1", name, "0000", {"C-FIND": "equal"}, verdict)  # type: ignore[arg-type]
        for name, verdict in (("CT, Explicit VR LE", "proven"), ("CT, JPEG XL", "lost"), ("envelope", "proven"))
    )
    gw.index.probe_put(
        ProbeResult("pacs", pacs.place, now - 86_400 * 3, "palimpsest 0.1.0", "ORTHANC", {"C-FIND": ""}, findings),
        "root",
    )
    story = {
        "instance": 3,
        "reason": "pixel-digest",
        "form": "CODED",
        "coder": "learned",
        "software": "palimpsest 0.1.0",
    }
    (gw.settings.quarantine_dir / "3-coded.json").write_text(json.dumps(story))


def beat(gw: Gateway, instance_id: int) -> None:
    """Heartbeats of a host's processes, two of them at work on an instance."""
    for owner, name, device, task in (
        ("encode-1-a", "encode-1", "", "encode"), ("encode-1-b", "encode-1", "", ""),
        ("gpu-0-a", "gpu-0", "", "encode"),
        ("forward-1-a", "forward-1", "", ""), ("retrieve-1-a", "retrieve-1", "", ""), ("sweep-a", "sweep", "", ""),
        ("listener-a", "listener", "", ""), ("api-a", "api", "", ""),
    ):  # fmt: skip
        device = "CUDA device 0: NVIDIA H200" if name == "gpu-0" else device
        alive = Alive(gw.index, owner, name, device)
        if device:
            alive.load(20_100_000_000, 150_000_000_000, 37)
        row = alive._row
        row = replace(
            row, task=task, subject=instance_id if task else None, task_since=time.time() - 2 if task else None
        )
        gw.index.worker_beat(replace(row, done=instance_id * 31, host="node-1"))
