"""The preset dictionary of packed records: a constant of the format, without anything around it."""

from __future__ import annotations

#: Preset deflate dictionary, frozen with version 1: changing a byte of it makes old records unreadable.
DICTIONARY = (
    b"1.2.840.10008.5.1.4.1.1.1.1.1.2.840.10008.5.1.4.1.1.1.2.1.2.840.10008.5.1.4.1.1.2.11.2.840.10008.5.1.4.1.1.6.1"
    b"1.2.840.10008.5.1.4.1.1.71.2.840.10008.5.1.4.1.1.1281.2.840.10008.5.1.4.1.1.201.2.840.10008.5.1.4.1.1.4"
    b"1.2.840.10008.5.1.4.1.1.21.2.826.0.1.3680043.8.498.1.2.276.0.7230010.3.1.4.1.2.392.2000361.3.12.2.1107.5.2."
    b"1.2.840.113619.2.1.3.6.1.4.1.14519.5.2.1.2.250.1.59.1.3.46.6705892.25.^^^CRDXMGMRPTNMUSOTANONYMOUS"
    b'{"accession":"","birth_date":"19","calling_ae":"","cut":[],"dataset_sha256":"","file_sha256":"",'
    b'"modality":"CT","nonpixel_sha256":"","patient_id":"","patient_name":"","pixel_sha256":"","received_at":"2026-'
    b'T+00:00","series_uid":"","sex":"M","sex":"F","sex":"O","signer":"sign-1","software":"palimpsest 0.1.0",'
    b'"sop_class":"1.2.840.10008.5.1.4.1.1.","sop_uid":"","source":"dimse","source":"stow",'
    b'"study_date":"20","study_uid":"1.2.840.","v":1}'
)
