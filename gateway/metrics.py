"""Every metric that a process counts, defined once. Each has labels of few values; none holds patient data.

What a process counts is added up over all processes of a host (gateway/metricfiles.py). What the system of record or
the host says by itself is read when somebody asks (gateway/metrics_read.py).
"""

from __future__ import annotations

from typing import Final

from prometheus_client import CollectorRegistry, Counter, Histogram

REGISTRY: Final = CollectorRegistry()

_SHORT: Final = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 15)  # seconds
_LONG: Final = (0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 15, 60, 300, 900)

RECEIVED: Final = Counter("palimpsest_received", "Objects taken in.", ["source", "outcome"], registry=REGISTRY)
RECEIVED_FROM: Final = Counter(
    "palimpsest_received_from", "Objects taken in by C-STORE, by calling AE title; 'other': not in the allow-list.",
    ["calling_ae"], registry=REGISTRY,
)  # fmt: skip
REFUSED: Final = Counter("palimpsest_refused", "Objects refused.", ["source", "reason"], registry=REGISTRY)
ACCEPT_SECONDS: Final = Histogram(
    "palimpsest_accept_seconds", "From the last byte to a committed row.", ["source"], buckets=_SHORT, registry=REGISTRY
)
WAKE_UPS_FAILED: Final = Counter(
    "palimpsest_wake_ups_failed", "Objects taken in while the queue was down.", ["reason"], registry=REGISTRY
)
STEP_SECONDS: Final = Histogram(
    "palimpsest_step_seconds", "A worker's step (encode, verify, archive) for one instance.",
    ["step", "modality", "coder"], buckets=_LONG, registry=REGISTRY,
)  # fmt: skip
WAIT_SECONDS: Final = Histogram(
    "palimpsest_wait_seconds", "From the receipt of an instance to its archived object.", ["modality"],
    buckets=(0.5, 1, 2, 5, 15, 60, 300, 1800, 7200, 28800, 86400), registry=REGISTRY,
)  # fmt: skip
ARCHIVED: Final = Counter("palimpsest_archived", "Instances archived.", ["modality", "coder"], registry=REGISTRY)
ARCHIVED_BYTES: Final = Counter(
    "palimpsest_archived_bytes", "Bytes of archived instances: received, archived.", ["modality", "coder", "bytes"],
    registry=REGISTRY,
)  # fmt: skip
PROOFS_FAILED: Final = Counter(
    "palimpsest_proofs_failed", "Candidates that did not restore to what was received.", ["reason"], registry=REGISTRY
)
TASKS_FAILED: Final = Counter("palimpsest_tasks_failed", "Tasks that failed.", ["task", "reason"], registry=REGISTRY)
FORWARD_SECONDS: Final = Histogram(
    "palimpsest_forward_seconds", "One object to one destination, made and sent.", ["destination", "outcome"],
    buckets=_LONG, registry=REGISTRY,
)  # fmt: skip
CACHE: Final = Counter(
    "palimpsest_cache", "Requests that the service answered from the cache by itself, or not.", ["result"],
    registry=REGISTRY,
)  # fmt: skip
RETRIEVED: Final = Counter("palimpsest_retrieved", "Objects given back.", ["kind", "outcome"], registry=REGISTRY)
RETRIEVE_SECONDS: Final = Histogram(
    "palimpsest_retrieve_seconds", "A retrieve worker's answer.", ["kind", "outcome"], buckets=_LONG, registry=REGISTRY
)

#: Defined Terms of Modality (0008,0060), PS3.3 C.7.3.1.1.1, as far as they are used for composite objects.
MODALITIES: Final = frozenset(
    {
        "ANN", "AR", "ASMT", "AU", "BDUS", "BI", "BMD", "CFM", "CR", "CT", "CTPROTOCOL", "DG", "DMS", "DOC", "DX",
        "ECG", "EEG", "EMG", "EOG", "EPS", "ES", "FID", "GM", "HC", "HD", "IO", "IOL", "IVOCT", "IVUS", "KER",
        "KO", "LEN", "LS", "M3D", "MG", "MR", "NM", "OAM", "OCT", "OP", "OPM", "OPR", "OPT", "OPTBSV", "OPTENF",
        "OPV", "OSS", "OT", "PA", "PLAN", "POS", "PR", "PT", "PX", "REG", "RESP", "RF", "RG", "RTDOSE", "RTIMAGE",
        "RTINTENT", "RTPLAN", "RTRAD", "RTRECORD", "RTSEGANN", "RTSTRUCT", "RWV", "SEG", "SM", "SMR", "SR", "SRF",
        "STAIN", "TEXTUREMAP", "TG", "US", "VA", "VIDD", "XA", "XAPROTOCOL", "XC",
    }
)  # fmt: skip
CODERS: Final = frozenset({"learned", "vae", "jxl", "jpegls", "htj2k", "raw", "dual"})


def modality_label(modality: str | None) -> str:
    """A Defined Term, 'unknown' where there is none, 'other' for anything else a sender may write."""
    return "unknown" if not modality else modality if modality in MODALITIES else "other"


def coder_label(coder: str | None) -> str:
    """Whose blobs most frames of an object are; 'whole' for one that is sealed as it came."""
    first = (coder or "whole").partition("+")[0]
    return first if first in CODERS or first == "whole" else "other"
