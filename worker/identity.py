"""The record's contents: identity essentials from the header, digests of the file, and where it came from."""

from __future__ import annotations

from dataclasses import dataclass, replace
from hashlib import sha256

from gateway.errors import InvalidInstance
from gateway.part10 import read_meta
from stego.record import Record
from worker.attributes import Data, DataSet


@dataclass(frozen=True)
class Provenance:
    """What the gateway knows of the receipt. received_at: ISO 8601 UTC; source: 'dimse' or 'stow'."""

    received_at: str
    source: str
    calling_ae: str
    software: str


def identify(data: Data, header: DataSet | None, facts: Provenance) -> Record:
    """The record before pixel digests are known; identity is empty when there is no readable header."""
    receipt = Record(
        file_sha256=sha256(data).hexdigest(),
        dataset_sha256=_dataset_digest(data),
        received_at=facts.received_at,
        source=facts.source,
        calling_ae=facts.calling_ae,
        software=facts.software,
    )
    return receipt if header is None else _with_identity(receipt, header)


def _with_identity(record: Record, header: DataSet) -> Record:
    return replace(
        record,
        patient_name=header.text(0x00100010, person=True),
        patient_id=header.text(0x00100020),
        birth_date=header.ascii(0x00100030),
        sex=header.ascii(0x00100040),
        accession=header.text(0x00080050),
        study_uid=header.ascii(0x0020000D),
        series_uid=header.ascii(0x0020000E),
        sop_uid=header.ascii(0x00080018),
        sop_class=header.ascii(0x00080016),
        study_date=header.ascii(0x00080020),
        modality=header.ascii(0x00080060),
    )


def _dataset_digest(data: Data) -> str:
    """SHA-256 of everything after the file meta information, '' when there is none."""
    try:
        offset = read_meta(data)[1]
    except InvalidInstance:
        return ""
    with memoryview(data) as view, view[offset:] as part:
        return sha256(part).hexdigest()
