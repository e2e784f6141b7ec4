"""De-identification to PS3.15 Annex E, Basic Profile and options, and its exact inverse.

What goes out is a new data set; what was taken out or replaced is the Modified Attributes item, original elements as
they were read, so that `reidentify` gives the identical data set. The source is never altered. Attribute by attribute
the rules are those of Table E.1-1 (`deid_table`); beyond it: private attributes and those that neither the table nor
the dictionary knows go, dates, names and UIDs that the table does not list go by their VR, a kept value must be what
its VR says. docs/conformance.md section 7 lists every choice.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.tag import BaseTag

from gateway.errors import PolicyRefused
from worker.deid_profile import Profile
from worker.deid_rules import Deidentifier, element_of, like, subject_of, tags_of
from worker.deid_values import Element
from worker.envelope import IMPLEMENTATION_UID, IMPLEMENTATION_VERSION

__all__ = ["Deidentified", "Profile", "deidentify", "reidentify", "refuse_unsafe_pixels", "separate"]

IDENTITY_REMOVED, METHOD, METHOD_CODE = 0x00120062, 0x00120063, 0x00120064
TEMPORAL_MODIFIED, ENCRYPTED_ATTRIBUTES = 0x00280303, 0x04000500
SPECIFIC_CHARACTER_SET = 0x00080005
#: attributes that de-identification writes itself; an original under one of these tags is always among `removed`
WRITTEN = (IDENTITY_REMOVED, METHOD, METHOD_CODE, TEMPORAL_MODIFIED, ENCRYPTED_ATTRIBUTES)
_BURNED_IN, _RECOGNIZABLE = 0x00280301, 0x00280302
_OVERLAY_BIT = 0x0102
_PIXELS = (0x7FE00010, 0x7FE00008, 0x7FE00009)
#: image classes that are screens, scanned paper or live overlays by nature: text in the pixels unless they deny it
_OFTEN_BURNED_IN = (
    "1.2.840.10008.5.1.4.1.1.7",  # Secondary Capture, and its multi-frame kinds below
    "1.2.840.10008.5.1.4.1.1.3",  # Ultrasound Multi-frame
    "1.2.840.10008.5.1.4.1.1.6",  # Ultrasound
    "1.2.840.10008.5.1.4.1.1.77.1",  # Visible light: photographs, endoscopy, microscopy with labels
)


@dataclass(frozen=True)
class Deidentified:
    """dataset: without identity, its file meta replaced. removed: the originals of everything removed or replaced.

    Elements are shared with the source where nothing changed. `removed.file_meta` and `removed.preamble` hold what
    stood around the source, where it had them.
    """

    dataset: Dataset = field(repr=False)
    removed: Dataset = field(repr=False)


def deidentify(dataset: Dataset, profile: Profile, key: bytes) -> Deidentified:
    """De-identify one data set. `key`: the ring's pseudonym key (32 bytes). Pixel data pass through untouched.

    Raises PolicyRefused, reasons as in `refuse_unsafe_pixels`; ValueError when the key is shorter than 16 bytes.
    """
    refuse_unsafe_pixels(dataset, profile)
    return separate(dataset, profile, key)


def separate(dataset: Dataset, profile: Profile, key: bytes) -> Deidentified:
    """As `deidentify`, for a data set whose pixels nobody will be shown: they are not judged. Raises ValueError."""
    if len(key) < 16:
        raise ValueError("the pseudonym key is too short")
    cleaned, changed = Deidentifier(profile, key, subject_of(dataset, key)).clean(dataset)
    written = _declare(profile)
    originals = {tag: element_of(dataset, tag) for tag in tags_of(dataset) if tag in changed or tag in WRITTEN}
    if originals and SPECIFIC_CHARACTER_SET in dataset:
        tag = BaseTag(SPECIFIC_CHARACTER_SET)
        originals[tag] = element_of(dataset, tag)  # removed text is read by it
    out = like(dataset, {**cleaned, **written})
    removed = like(dataset, originals)
    if hasattr(dataset, "file_meta"):
        removed.file_meta = dataset.file_meta
        out.file_meta = _new_file_meta(dataset.file_meta, out)
    if getattr(dataset, "preamble", None) is not None:
        removed.preamble = dataset.preamble
        out.preamble = bytes(128)
    return Deidentified(out, removed)


def reidentify(dataset: Dataset, removed: Dataset) -> Dataset:
    """The data set as it was before `deidentify`: equal, and equal in bytes when written the same way."""
    own = {tag: element_of(dataset, tag) for tag in tags_of(dataset) if tag not in WRITTEN}
    back = like(dataset, {**own, **{tag: element_of(removed, tag) for tag in tags_of(removed)}})
    if hasattr(removed, "file_meta"):
        back.file_meta = removed.file_meta
    if getattr(removed, "preamble", None) is not None:
        back.preamble = removed.preamble
    return back


def refuse_unsafe_pixels(dataset: Dataset, profile: Profile) -> None:
    """Pixels are never edited here, so what may show an identity is refused.

    Raises PolicyRefused: ``burned-in`` (declared, or likely by its class and not denied), ``burned-in-unknown`` (with
    clean_pixel_data: not denied), ``recognizable-features`` (with that option: not denied), ``overlay-in-pixels``
    (an overlay in the unused bits of the pixel words). A data set without pixel data passes.
    """
    if not any(tag in dataset for tag in _PIXELS):
        return
    burned_in = _code_string(dataset, _BURNED_IN)
    if burned_in != "NO" and (burned_in == "YES" or _likely_burned_in(dataset)):
        raise PolicyRefused("burned-in", "the pixels are declared or likely to show identifying text")
    if profile.clean_pixel_data and burned_in != "NO":
        raise PolicyRefused("burned-in-unknown", "the object does not declare its pixels free of burned-in text")
    if profile.clean_recognizable_visual_features and _code_string(dataset, _RECOGNIZABLE) != "NO":
        raise PolicyRefused("recognizable-features", "the object does not declare its pixels free of a likeness")
    if any(_in_pixels(dataset, tag) for tag in tags_of(dataset)):
        raise PolicyRefused("overlay-in-pixels", "an overlay lies in the unused bits of the pixel data")


def _code_string(dataset: Dataset, tag: int) -> str:
    return _plain(dataset, tag).split("\\")[0].strip().upper()


def _plain(dataset: Dataset, tag: int) -> str:
    """ASCII text of a top-level attribute, '' when absent."""
    if tag not in dataset:
        return ""
    value = element_of(dataset, tag).value
    text = value.decode("latin-1") if isinstance(value, bytes) else "" if value is None else str(value)
    return text.strip("\0 ")


def _likely_burned_in(dataset: Dataset) -> bool:
    sop_class = _plain(dataset, 0x00080016)
    return any(sop_class == root or sop_class.startswith(root + ".") for root in _OFTEN_BURNED_IN)


def _in_pixels(dataset: Dataset, tag: BaseTag) -> bool:
    """True for an Overlay Bit Position of a plane that has no Overlay Data of its own."""
    if tag.group & 0xFF01 != 0x6000 or tag.element != _OVERLAY_BIT:
        return False
    return (tag.group << 16 | 0x3000) not in dataset


def _declare(profile: Profile) -> Mapping[BaseTag, Element]:
    """Patient Identity Removed, the method in words and codes, and what became of dates (PS3.15 E.1.1, 6)."""
    items = []
    for value, meaning in profile.codes():
        item = Dataset()
        item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = value, "DCM", meaning
        items.append(item)
    method = DataElement(METHOD, "LO", f"{IMPLEMENTATION_VERSION} PS3.15 Annex E")
    elements = (
        DataElement(IDENTITY_REMOVED, "CS", "YES"),
        method,
        DataElement(METHOD_CODE, "SQ", items),
        DataElement(TEMPORAL_MODIFIED, "CS", profile.temporal),
    )
    return {element.tag: element for element in elements}


def _new_file_meta(old: FileMetaDataset, dataset: Dataset) -> FileMetaDataset:
    """PS3.15 E.1.1, 7: the file meta information describes the de-identifying application."""
    meta = FileMetaDataset()
    meta.FileMetaInformationVersion = b"\x00\x01"
    meta.MediaStorageSOPClassUID = _plain(dataset, 0x00080016)
    meta.MediaStorageSOPInstanceUID = _plain(dataset, 0x00080018)
    if "TransferSyntaxUID" in old:
        meta.TransferSyntaxUID = old.TransferSyntaxUID
    meta.ImplementationClassUID = IMPLEMENTATION_UID
    meta.ImplementationVersionName = IMPLEMENTATION_VERSION
    return meta
