"""The index of probes: what each destination was last found to do."""

from __future__ import annotations

import sqlalchemy as sa

from gateway import audit
from gateway.audit import AuditEvent, Detail
from gateway.database import Database
from gateway.errors import IntegrityError
from gateway.index_schema import probe
from gateway.probe_result import ProbeResult


class Probes(Database):
    """One row per destination, the newest; the audit trail knows of the earlier ones."""

    def probe_put(self, result: ProbeResult, actor: str) -> None:
        """Record a probe; it counts from now on."""
        values = {"place": result.place, "at": result.at, "result": result.dump()}
        with self.write() as conn:
            known = conn.execute(sa.update(probe).where(probe.c.destination == result.destination).values(**values))
            if not known.rowcount:
                conn.execute(probe.insert().values(destination=result.destination, **values))
            counts = ", ".join(f"{word} {number}" for word, number in result.counts().items())
            detail: Detail = {"destination": result.destination, "outcome": counts}
            audit.append(conn, AuditEvent("probed", actor, detail=detail), self.now())

    def probe_of(self, destination: str, place: str | None = None) -> ProbeResult | None:
        """The newest probe of a destination; with `place` only one of that very place.

        One that an older release wrote and this one cannot read counts as none.
        """
        query = sa.select(probe.c.place, probe.c.result).where(probe.c.destination == destination)
        with self.read() as conn:
            row = conn.execute(query).first()
        if row is None or (place is not None and row.place != place):
            return None
        try:
            return ProbeResult.load(row.result)
        except IntegrityError:
            return None
