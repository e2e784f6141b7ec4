"""Which de-identification is asked for: the Basic Profile and its options (PS3.15 Annex E, PS3.16 CID 7050)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields

#: PS3.16 CID 7050 De-identification Method; the first is the profile itself, the others go with a switch
METHOD_CODES = {
    "basic": ("113100", "Basic Application Confidentiality Profile"),
    "clean_pixel_data": ("113101", "Clean Pixel Data Option"),
    "clean_recognizable_visual_features": ("113102", "Clean Recognizable Visual Features Option"),
    "clean_graphics": ("113103", "Clean Graphics Option"),
    "clean_structured_content": ("113104", "Clean Structured Content Option"),
    "clean_descriptors": ("113105", "Clean Descriptors Option"),
    "retain_full_dates": ("113106", "Retain Longitudinal Temporal Information Full Dates Option"),
    "retain_modified_dates": ("113107", "Retain Longitudinal Temporal Information Modified Dates Option"),
    "retain_patient_characteristics": ("113108", "Retain Patient Characteristics Option"),
    "retain_device_identity": ("113109", "Retain Device Identity Option"),
    "retain_uids": ("113110", "Retain UIDs Option"),
    "retain_safe_private": ("113111", "Retain Safe Private Option"),
    "retain_institution_identity": ("113112", "Retain Institution Identity Option"),
}


@dataclass(frozen=True, slots=True)
class Profile:
    """The Basic Application Level Confidentiality Profile (always) and its options (all off by default).

    clean_pixel_data and clean_recognizable_visual_features clean nothing: they refuse what does not declare itself
    clean. Raises ValueError when both date options are chosen.
    """

    retain_safe_private: bool = False
    retain_uids: bool = False
    retain_device_identity: bool = False
    retain_institution_identity: bool = False
    retain_patient_characteristics: bool = False
    retain_full_dates: bool = False
    retain_modified_dates: bool = False
    clean_descriptors: bool = False
    clean_structured_content: bool = False
    clean_graphics: bool = False
    clean_pixel_data: bool = False
    clean_recognizable_visual_features: bool = False

    def __post_init__(self) -> None:
        if self.retain_full_dates and self.retain_modified_dates:
            raise ValueError("retain_full_dates and retain_modified_dates exclude each other")

    @classmethod
    def of(cls, names: Iterable[str]) -> Profile:
        """The profile with the named options on, words joined by '_' or '-'.

        Raises ValueError naming an unknown one and the known ones.
        """
        chosen = {name.replace("-", "_") for name in names}
        known = [field.name for field in fields(cls)]
        unknown = sorted(chosen - set(known))
        if unknown:
            raise ValueError(f"no such de-identification option: {', '.join(unknown)}; there are {', '.join(known)}")
        return cls(**dict.fromkeys(chosen, True))

    def chosen(self) -> tuple[str, ...]:
        """Names of the options that are on, in the order of their codes."""
        return tuple(name for name in METHOD_CODES if name != "basic" and getattr(self, name))

    def codes(self) -> tuple[tuple[str, str], ...]:
        """(code value, code meaning) of CID 7050 for the profile and its options; coding scheme DCM."""
        return tuple(METHOD_CODES[name] for name in ("basic", *self.chosen()))

    @property
    def temporal(self) -> str:
        """Longitudinal Temporal Information Modified (0028,0303): UNMODIFIED, MODIFIED or REMOVED."""
        if self.retain_full_dates:
            return "UNMODIFIED"
        return "MODIFIED" if self.retain_modified_dates else "REMOVED"
