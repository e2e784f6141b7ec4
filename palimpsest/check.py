"""`palimpsest check`: a restore certificate, and files held against it. No gateway, no database, no key ring."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import file_digest
from pathlib import Path
from typing import Any

from gateway.certificate_format import MAX_BYTES, Certificate, open_certificate, read_trusted
from gateway.errors import InvalidInstance

__all__ = ["Verdict", "check_archive", "check_files", "read_certificate"]


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of one thing held against the certificate. what: the file, or the instance that no file stood for."""

    ok: bool
    what: str
    text: str


def read_certificate(path: Path, public_keys: Sequence[Path], now: float) -> Certificate:
    """Raises InvalidInstance (a file cannot be read, no keys in it), BadCertificate (see `open_certificate`)."""
    trusted: dict[str, str] = {}
    for each in public_keys:
        trusted |= read_trusted(_read(each, 1 << 20))
    return open_certificate(_read(path, MAX_BYTES), trusted, now)


def check_files(certificate: Certificate, paths: Sequence[Path], *, partial: bool = False) -> list[Verdict]:
    """Every file under `paths` against the files that were received, then every instance that had none.

    partial: those are not asked for. Raises InvalidInstance for what cannot be read.
    """
    received: dict[str, Mapping[str, Any]] = {}
    restored: dict[str, Mapping[str, Any]] = {}
    for entry in _whole(certificate):
        received[str(entry["received"]["sha256"])] = entry
        restored[str(entry["proven"]["restored_sha256"])] = entry
    verdicts, met = [], set()
    for path in _files(paths):
        digest = _digest(path)
        entry = received.get(digest) or restored.get(digest)
        if entry is None:
            verdicts.append(Verdict(False, str(path), "not a file of this certificate"))
            continue
        met.add(entry["number"])
        how = "received, bit for bit" if digest in received else "given back: same pixels, same other bytes"
        verdicts.append(Verdict(True, str(path), f"the file as {how} (instance {entry['number']})"))
    if not partial:
        lost = [entry for entry in _whole(certificate) if entry["number"] not in met]
        verdicts += [Verdict(False, f"instance {entry['number']}", "no file was given for it") for entry in lost]
    return verdicts


def check_archive(certificate: Certificate, paths: Sequence[Path]) -> list[Verdict]:
    """Every file under `paths` against the archive objects. Raises InvalidInstance for what cannot be read."""
    numbers: dict[str, list[int]] = {}
    for entry in certificate.instances:
        numbers.setdefault(str(entry["archived"]["sha256"]), []).append(entry["number"])
    verdicts = []
    for path in _files(paths):
        found = numbers.get(_digest(path))
        names = ", ".join(map(str, found or ()))
        text = f"the archive object of instance {names}" if found else "not an archive object of this certificate"
        verdicts.append(Verdict(bool(found), str(path), text))
    return verdicts


def _whole(certificate: Certificate) -> list[Mapping[str, Any]]:
    return [entry for entry in certificate.instances if entry["shredded_at"] is None]


def _files(paths: Sequence[Path]) -> list[Path]:
    return [
        file
        for path in paths
        for file in (sorted(each for each in path.rglob("*") if each.is_file()) if path.is_dir() else [path])
    ]


def _digest(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return file_digest(file, "sha256").hexdigest()
    except OSError:
        raise InvalidInstance("file-unreadable", f"{path} cannot be read") from None


def _read(path: Path, most: int) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(most + 1)
    except OSError:
        raise InvalidInstance("file-unreadable", f"{path} cannot be read") from None
