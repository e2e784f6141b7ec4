"""Whose image an audit event is about, by keyed pseudonyms."""

from __future__ import annotations

from gateway.bootstrap import Gateway
from gateway.pseudonym import pseudonym_patient, pseudonym_uid

__all__ = ["audit_subject", "patient_names", "study_name", "study_names"]


def audit_subject(gw: Gateway, patient_id: str, study_uid: str) -> tuple[str, str]:
    """(study's, patient's pseudonym) under the current key; '' where there is nothing to name."""
    key = gw.keys.pseudonym_key()
    patient = pseudonym_patient(patient_id, study_uid, key) if patient_id or study_uid else ""
    return (pseudonym_uid(study_uid, key) if study_uid else "", patient)


def study_name(gw: Gateway, study_uid: str) -> str:
    """A study's pseudonym under the current key."""
    return pseudonym_uid(study_uid, gw.keys.pseudonym_key())


def patient_names(gw: Gateway, patient_id: str) -> tuple[str, ...]:
    """Every pseudonym a Patient ID ever had here: one for each pseudonym key."""
    return tuple(pseudonym_patient(patient_id, "", key) for key in gw.keys.pseudonym_keys())


def study_names(gw: Gateway, study_uid: str) -> tuple[str, ...]:
    """The same of a Study Instance UID, and the UID itself, for it may be a pseudonym already."""
    return (study_uid, *(pseudonym_uid(study_uid, key) for key in gw.keys.pseudonym_keys()))
