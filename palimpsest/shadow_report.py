"""What shadow mode found, by modality and coder: as one JSON file, and as a page that needs nothing else.

Modality, coder, counts, bytes and seconds; nothing of a patient, no AE title, no UID.
"""

from __future__ import annotations

import html
import json
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

from palimpsest.shadow_page import PAGE, bar_rows

__all__ = ["FORMS", "Report", "Sums"]

FORMS: Final = {
    "default": "Palimpsest", "fast": "Palimpsest, fast", "jxl9": "JPEG XL, effort 9", "jpegls": "JPEG-LS",
    "htj2k": "HTJ2K",
}  # fmt: skip
FORMAT: Final = "palimpsest-shadow-1"


@dataclass
class Sums:
    """Of one modality. seen, seen_bytes: objects that passed; measured: those that were measured, `bytes` by form.

    whole: measured objects that ours seals as they came, by reason; wrong: not given back exactly (must be 0); scaled:
    the standards coded some frames only, and were taken for all. encode_s, decode_s: seconds by form, one thread.
    """

    seen: int = 0
    seen_bytes: int = 0
    measured: int = 0
    bytes: dict[str, int] = field(default_factory=dict)
    encode_s: dict[str, float] = field(default_factory=dict)
    decode_s: dict[str, float] = field(default_factory=dict)
    whole: dict[str, int] = field(default_factory=dict)
    wrong: int = 0
    scaled: int = 0


@dataclass
class Report:
    """All of it. source: 'traffic' or 'folder'; link_mbit: of the line for which seconds are reckoned.

    not_measured: objects that passed and were not measured, by reason; answers: of the PACS to C-STORE, by kind;
    relayed: see shadow_relay.Relayed.
    """

    source: str = "traffic"
    link_mbit: float = 100.0
    began: float = 0.0
    until: float = 0.0
    modalities: dict[str, Sums] = field(default_factory=dict)
    not_measured: dict[str, int] = field(default_factory=dict)
    not_followed: dict[str, int] = field(default_factory=dict)
    answers: dict[str, int] = field(default_factory=dict)
    relayed: dict[str, int] = field(default_factory=dict)

    def of(self, modality: str) -> Sums:
        """The sums of a modality."""
        return self.modalities.setdefault(modality, Sums())

    def total(self) -> Sums:
        """All modalities together."""
        out = Sums()
        for each in self.modalities.values():
            for name in ("seen", "seen_bytes", "measured", "wrong", "scaled"):
                setattr(out, name, getattr(out, name) + getattr(each, name))
            for name in ("bytes", "encode_s", "decode_s", "whole"):
                into = getattr(out, name)
                for form, value in getattr(each, name).items():
                    into[form] = into.get(form, 0) + value
        return out

    def as_dict(self) -> dict[str, Any]:
        """JSON-able, with what is saved by modality and form."""
        sums = {**self.modalities, "all": self.total()}
        saved = {name: self._saved(each) for name, each in sums.items() if each.measured}
        return {"format": FORMAT, **asdict(self), "all": asdict(sums["all"]), "saved": saved}

    def _saved(self, sums: Sums) -> dict[str, dict[str, float]]:
        """By form: bytes, share of what was received, seconds on the line, and of encoding and decoding."""
        received = sums.bytes["received"]
        out = {}
        for form in FORMS:
            if form in sums.bytes:
                bytes_saved = received - sums.bytes[form]
                out[form] = {
                    "bytes": bytes_saved,
                    "share": round(bytes_saved / received, 4) if received else 0.0,
                    "link_seconds": round(bytes_saved * 8 / (self.link_mbit * 1e6), 3),
                    "encode_seconds": round(sums.encode_s.get(form, 0.0), 3),
                    "decode_seconds": round(sums.decode_s.get(form, 0.0), 3),
                }
        return out

    def write(self, json_file: Path | None, page: Path | None) -> None:
        """Both files, each replaced as a whole. Raises OSError."""
        self.until = time.time()
        for path, text in ((json_file, json.dumps(self.as_dict(), indent=1) + "\n"), (page, self.page())):
            if path is not None:
                new = path.with_name(path.name + ".new")
                new.write_text(text, encoding="utf-8")
                new.replace(path)

    @classmethod
    def read(cls, path: Path) -> Report:
        """What `write` wrote, to go on counting; an empty one for a file that is no such report."""
        try:
            content = json.loads(path.read_text("utf-8"))
            if content.pop("format", "") != FORMAT:
                return cls()
            modalities = {name: Sums(**each) for name, each in content.pop("modalities").items()}
            known = {name: content[name] for name in cls.__dataclass_fields__ if name in content}
            return cls(**known, modalities=modalities)
        except (OSError, ValueError, TypeError, KeyError, AttributeError):
            return cls()

    def page(self) -> str:
        """The page: light and dark, no script, nothing loaded from anywhere."""
        total = self.total()
        saved = self._saved(total) if total.measured else {}
        return PAGE.format(
            when=html.escape(f"{_time(self.began)} to {_time(self.until)}"),
            source="live traffic" if self.source == "traffic" else "a folder",
            headline=_headline(total, saved),
            bars=bar_rows([(label, total.bytes[form]) for form, label in _forms(total)]) if total.measured else "",
            modalities="".join(self._modality_rows()),
            speeds="".join(_speed_rows(total, saved)),
            link=f"{self.link_mbit:g}",
            facts="".join(self._facts(total)),
        )

    def _modality_rows(self) -> list[str]:
        rows = []
        for name, sums in sorted(self.modalities.items(), key=lambda each: -each[1].seen_bytes):
            saved = self._saved(sums) if sums.measured else {}
            cells = [html.escape(name), f"{sums.seen:,}", _size(sums.seen_bytes), f"{sums.measured:,}"]
            cells += [f"{saved[form]['share']:+.1%}".replace("+", "") if form in saved else "–" for form in FORMS]
            rows.append("<tr><th scope=row>" + "</th><td>".join(cells[:2]) + _cells(cells[2:]) + "</tr>\n")
        return rows

    def _facts(self, total: Sums) -> list[str]:
        facts = [
            ("Objects that passed", f"{total.seen:,}, {_size(total.seen_bytes)}"),
            ("Measured", f"{total.measured:,}"),
            ("Not measured", _pairs(self.not_measured)),
            ("Connections not followed", _pairs(self.not_followed)),
            ("Answers of the PACS to C-STORE", _pairs(self.answers)),
            ("Sealed whole, not coded", _pairs(total.whole)),
            ("Given back wrong", f"{total.wrong:,}"),
            ("Of many frames, some coded by the standards", f"{total.scaled:,} objects"),
            ("Relayed", _pairs(self.relayed)),
        ]
        return [
            f"<tr><th scope=row>{html.escape(name)}</th><td>{html.escape(text)}</td></tr>\n" for name, text in facts
        ]


def _forms(sums: Sums) -> list[tuple[str, str]]:
    return [("received", "as received"), *((form, label) for form, label in FORMS.items() if form in sums.bytes)]


def _headline(total: Sums, saved: dict[str, dict[str, float]]) -> str:
    if not total.measured:
        return "Nothing was measured yet."
    best = saved["default"]
    return (
        f"<strong>{best['share']:.1%}</strong> fewer bytes than as received, with every image given back exactly"
        if not total.wrong
        else f"<strong>{total.wrong} objects came back wrong.</strong> Tell us before you go on."
    )


def _speed_rows(total: Sums, saved: dict[str, dict[str, float]]) -> list[str]:
    return [
        f"<tr><th scope=row>{FORMS[form]}</th><td>{_size(total.bytes[form])}</td><td>{_size(each['bytes'])}</td>"
        f"<td>{each['share']:.1%}</td><td>{_seconds(each['link_seconds'])}</td><td>{_seconds(each['encode_seconds'])}</td>"
        f"<td>{_seconds(each['decode_seconds'])}</td></tr>\n"
        for form, each in saved.items()
    ]


def _cells(texts: list[str]) -> str:
    return "".join(f"</td><td>{text}" for text in texts) + "</td>"


def _pairs(values: dict[str, int]) -> str:
    return ", ".join(f"{name.replace('_', ' ')} {value:,}" for name, value in values.items()) or "none"


def _time(at: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.gmtime(at)) + " UTC"


def _seconds(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:,.2f}"


def _size(value: float) -> str:
    number = float(value)
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if abs(number) < 1000 or unit == "TB":
            break
        number /= 1000
    return f"{number:,.0f} {unit}" if unit == "B" else f"{number:,.1f} {unit}"
