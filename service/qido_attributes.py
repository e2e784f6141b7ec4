"""Which attributes belong to which level of a search (PS3.3 A.1.2, C.7.1 to C.7.3, C.7.5): patient, study and series.

Everything else belongs to the instance: said of a study, it would be said of one image of it.
"""

from __future__ import annotations

from typing import Final

from pydicom.datadict import tag_for_keyword

from gateway.matching import COLUMNS, LEVELS, LISTED

__all__ = ["belongs", "indexed", "tag_of"]

#: Patient, Clinical Trial Subject, General Study, Patient Study, Clinical Trial Study modules.
_STUDY: Final = frozenset(
    [
        "AdditionalPatientHistory",
        "AdmissionID",
        "AdmittingDiagnosesCodeSequence",
        "AdmittingDiagnosesDescription",
        "Allergies",
        "BreedRegistrationSequence",
        "ClinicalTrialProtocolID",
        "ClinicalTrialProtocolName",
        "ClinicalTrialSiteID",
        "ClinicalTrialSiteName",
        "ClinicalTrialSponsorName",
        "ClinicalTrialSubjectID",
        "ClinicalTrialSubjectReadingID",
        "ClinicalTrialTimePointDescription",
        "ClinicalTrialTimePointID",
        "ConsultingPhysicianName",
        "DeidentificationMethod",
        "DeidentificationMethodCodeSequence",
        "EthnicGroup",
        "IssuerOfAccessionNumberSequence",
        "IssuerOfAdmissionIDSequence",
        "IssuerOfPatientID",
        "IssuerOfPatientIDQualifiersSequence",
        "LastMenstrualDate",
        "MedicalAlerts",
        "NameOfPhysiciansReadingStudy",
        "Occupation",
        "OtherPatientIDs",
        "OtherPatientIDsSequence",
        "OtherPatientNames",
        "PatientAge",
        "PatientBirthTime",
        "PatientBodyMassIndex",
        "PatientBreedDescription",
        "PatientComments",
        "PatientIdentityRemoved",
        "PatientSexNeutered",
        "PatientSize",
        "PatientSpeciesDescription",
        "PatientState",
        "PatientWeight",
        "PhysiciansOfRecord",
        "PregnancyStatus",
        "ProcedureCodeSequence",
        "QualityControlSubject",
        "ReasonForPerformedProcedureCodeSequence",
        "ReasonForVisit",
        "ReferencedPatientSequence",
        "ReferencedStudySequence",
        "ReferringPhysicianIdentificationSequence",
        "RequestingService",
        "ResponsibleOrganization",
        "ResponsiblePerson",
        "ServiceEpisodeDescription",
        "ServiceEpisodeID",
        "SmokingStatus",
        "SpecialNeeds",
        "TimezoneOffsetFromUTC",
        "TypeOfPatientID",
    ]
)
#: General Series, Clinical Trial Series, Frame of Reference, General Equipment modules.
_SERIES: Final = frozenset(
    [
        "AnatomicalOrientationType",
        "ClinicalTrialCoordinatingCenterName",
        "ClinicalTrialSeriesDescription",
        "ClinicalTrialSeriesID",
        "CommentsOnThePerformedProcedureStep",
        "DateOfLastCalibration",
        "DeviceSerialNumber",
        "DeviceUID",
        "FrameOfReferenceUID",
        "GantryID",
        "InstitutionAddress",
        "InstitutionName",
        "InstitutionalDepartmentName",
        "Laterality",
        "Manufacturer",
        "ManufacturerModelName",
        "OperatorsName",
        "PatientPosition",
        "PerformedProcedureStepDescription",
        "PerformedProcedureStepEndDate",
        "PerformedProcedureStepEndTime",
        "PerformedProcedureStepID",
        "PerformedProcedureStepStartDate",
        "PerformedProcedureStepStartTime",
        "PerformedProtocolCodeSequence",
        "PerformingPhysicianName",
        "PositionReferenceIndicator",
        "ProtocolName",
        "ReferencedPerformedProcedureStepSequence",
        "RelatedSeriesSequence",
        "RequestAttributesSequence",
        "SeriesTime",
        "SeriesDescriptionCodeSequence",
        "SoftwareVersions",
        "SpatialResolution",
        "StationName",
        "TimeOfLastCalibration",
    ]
)


def belongs(keyword: str, level: str) -> bool:
    """Whether an attribute is one of a level or of those above it."""
    if level == "instance" or keyword in _STUDY or keyword in LISTED:
        return True
    if keyword in COLUMNS:
        return LEVELS.index(COLUMNS[keyword][1]) <= LEVELS.index(level)
    return level == "series" and keyword in _SERIES


def indexed(keyword: str) -> bool:
    """Whether the index itself matches it."""
    return keyword in COLUMNS or keyword in LISTED


def tag_of(keyword: str) -> str:
    """The tag as DICOM JSON writes it; '' for no keyword."""
    tag = tag_for_keyword(keyword)
    return "" if tag is None else f"{tag:08X}"
