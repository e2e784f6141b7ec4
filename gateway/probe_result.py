"""What a probe found out about a destination: per SOP class and transfer syntax, what became of a test object."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Final, Literal

from gateway.errors import IntegrityError

__all__ = ["RAW_DATA", "REFUTED", "Finding", "ProbeResult", "Verdict"]

Verdict = Literal["proven", "stored", "refused", "lost", "altered"]
#: proven: came back equal by every way that the destination offers; stored: accepted, and there is no way to ask for it
#: back; refused: not accepted; lost: accepted, and some way does not give it back; altered: came back as something else
REFUTED: Final[frozenset[str]] = frozenset({"refused", "lost", "altered"})
RAW_DATA: Final = "1.2.840.10008.5.1.4.1.1.66"


@dataclass(frozen=True, slots=True)
class Finding:
    """One test object. sop_class, syntax: UIDs; name: both for people; stored: how the destination took it;

    reads: way -> 'equal', or what was wrong.
    """

    sop_class: str
    syntax: str
    name: str
    stored: str
    reads: Mapping[str, str]
    verdict: Verdict


@dataclass(frozen=True, slots=True)
class ProbeResult:
    """A whole probe. at: seconds since the epoch; place: of `Destination.place`; peer: what it calls itself, '' if it
    does not; ways: way of reading back -> '' if it works, else why it counts as not offered; left: what the probe could
    not take away again.
    """

    destination: str
    place: str
    at: float
    software: str
    peer: str
    ways: Mapping[str, str]
    findings: tuple[Finding, ...]
    left: tuple[str, ...] = field(default=())

    def dump(self) -> str:
        """As JSON."""
        return json.dumps(asdict(self))

    @classmethod
    def load(cls, text: str) -> ProbeResult:
        """Inverse of `dump`. Raises IntegrityError ``probe-unreadable``."""
        try:
            values: dict[str, Any] = json.loads(text)
            findings = tuple(Finding(**each) for each in values.pop("findings"))
            return cls(**{**values, "left": tuple(values["left"])}, findings=findings)
        except (ValueError, TypeError, KeyError):
            raise IntegrityError("probe-unreadable", "a recorded probe cannot be read; probe again") from None

    def verdict(self, sop_class: str, syntax: str) -> Verdict | None:
        """What is known of such objects; None: nothing.

        A class that was not probed is judged by the image classes that were, if they agree.
        """
        exact = [each.verdict for each in self.findings if (each.sop_class, each.syntax) == (sop_class, syntax)]
        if exact:
            return exact[0]
        others = {each.verdict for each in self.findings if each.syntax == syntax and each.sop_class != RAW_DATA}
        if sop_class == RAW_DATA or not others:
            return None
        if others <= REFUTED:
            return next(word for word in _WORST_FIRST if word in others)
        return "proven" if others == {"proven"} else ("stored" if not others & REFUTED else None)

    def refutes(self, sop_class: str, syntax: str) -> bool:
        """True if such objects are known not to survive there."""
        return self.verdict(sop_class, syntax) in REFUTED

    def counts(self) -> dict[str, int]:
        """Verdict -> how many test objects."""
        return {word: n for word in _WORST_FIRST[::-1] if (n := self._count(word))}

    def _count(self, word: str) -> int:
        return sum(each.verdict == word for each in self.findings)

    def proven(self, sop_class: str, syntaxes: Iterable[str]) -> tuple[str, ...]:
        """Those of `syntaxes` that are proven for a SOP class, in their order."""
        return tuple(each for each in syntaxes if self.verdict(sop_class, each) == "proven")


_WORST_FIRST: Final[tuple[Verdict, ...]] = ("altered", "lost", "refused", "stored", "proven")
