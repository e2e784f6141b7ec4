"""What the bench is asked to do."""

from __future__ import annotations

from dataclasses import dataclass, field

from gateway.policy import Adaptation, CodecProfile
from worker.bench_inputs import Choice


@dataclass(frozen=True)
class Plan:
    """How our coder is run. without: parts of it that are left out (see encode_frame); objects: whole objects too.

    fit_seconds: that one fit may take."""

    profile: CodecProfile = "default"
    adapt: Adaptation = "none"
    threads: int = 1
    without: frozenset[str] = frozenset()
    objects: bool = True
    fit_seconds: float = 4.0
    choice: Choice = field(default_factory=Choice)
