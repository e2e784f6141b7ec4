"""Traces of instances by OpenTelemetry, if PALIMPSEST_TRACING_ENDPOINT names a collector; else nothing is loaded.

The context of a trace is a function of the instance's row: number and time of receipt. So whoever holds the row, in
any process, after any crash and whatever became of the queue's message, adds to the same trace, and nothing travels
with the message but the number. Spans are told when they are over, with the times they had. Attributes are machine
words and counts: no UID, no digest, no AE title, nothing of the patient.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from hashlib import sha256
from typing import TYPE_CHECKING, Any, Final

from gateway.errors import Unavailable
from gateway.settings import Settings

if TYPE_CHECKING:
    from gateway.index_rows import InstanceRow

__all__ = ["begin", "end", "root", "step", "trace_id"]

ROOT: Final = "receive"
Attributes = Mapping[str, str | int]


class _Tracing:
    """The exporter of this process, once `begin` was called; `tracer` is None while there is none."""

    def __init__(self) -> None:
        self.tracer: Any = None
        self.provider: Any = None
        self.wanted = threading.local()  # .ids: those of the next span that this thread starts


_here: Final = _Tracing()


def begin(settings: Settings, role: str) -> None:
    """Export this process's spans from now on, if settings name a collector. After a fork, for it starts a thread.

    Raises Unavailable ``tracing-missing`` where the extra `tracing` is not installed.
    """
    if not settings.tracing_endpoint or _here.tracer is not None:
        return
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
        from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
        from opentelemetry.sdk.trace.sampling import TraceIdRatioBased
    except ImportError:
        raise Unavailable("tracing-missing", "traces need the extra: pip install 'palimpsest[tracing]'") from None

    class Ids(RandomIdGenerator):
        """Random ids, but for the root of a trace, whose two ids are a function of the row."""

        def generate_trace_id(self) -> int:
            wanted = getattr(_here.wanted, "ids", None)
            return wanted[0] if wanted else super().generate_trace_id()

        def generate_span_id(self) -> int:
            wanted = getattr(_here.wanted, "ids", None)
            return wanted[1] if wanted else super().generate_span_id()

    resource = Resource.create({"service.name": "palimpsest", "palimpsest.role": role})
    sampler = TraceIdRatioBased(settings.tracing_share)  # by the trace's id alone: every process decides the same
    _here.provider = TracerProvider(resource=resource, sampler=sampler, id_generator=Ids(), shutdown_on_exit=False)
    _here.provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=settings.tracing_endpoint)))
    _here.tracer = _here.provider.get_tracer("palimpsest")


def end() -> None:
    """Send what waits, and stop."""
    provider, _here.provider, _here.tracer = _here.provider, None, None
    if provider is not None:
        provider.shutdown()


def trace_id(row: InstanceRow) -> tuple[int, int]:
    """(trace id, span id of its root), 128 and 64 bits, never 0 (W3C Trace Context 3.2.2.3)."""
    digest = sha256(f"palimpsest trace {row.id} {row.received_at!r}".encode()).digest()
    return int.from_bytes(digest[:16], "big") | 1, int.from_bytes(digest[16:24], "big") | 1


def root(row: InstanceRow, began: int, attributes: Attributes) -> None:
    """The span from which an instance's trace hangs: its receipt, from `began` (ns since the epoch) until now."""
    if _here.tracer is None:
        return
    from opentelemetry.context import Context

    _here.wanted.ids = trace_id(row)
    try:
        span = _here.tracer.start_span(ROOT, Context(), attributes={**attributes, **_facts(row)}, start_time=began)
    finally:
        _here.wanted.ids = None
    span.end(time.time_ns())


def step(name: str, row: InstanceRow, began: int, attributes: Attributes) -> None:
    """A later step of the same instance, from `began` (ns since the epoch) until now."""
    if _here.tracer is None:
        return
    from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags, set_span_in_context

    trace, parent = trace_id(row)
    above = SpanContext(trace, parent, is_remote=True, trace_flags=TraceFlags(TraceFlags.SAMPLED))
    context = set_span_in_context(NonRecordingSpan(above))
    span = _here.tracer.start_span(name, context, attributes={**attributes, **_facts(row)}, start_time=began)
    span.end(time.time_ns())


def _facts(row: InstanceRow) -> dict[str, int]:
    return {"palimpsest.instance": row.id, "palimpsest.bytes": row.size}
