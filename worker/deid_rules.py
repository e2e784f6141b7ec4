"""One data set's attributes under the table's actions, sequences included (PS3.15 E.1.1).

Actions: X remove, Z empty, D dummy, U keyed UID, K keep, C clean. Of a choice (Z/D, X/Z/D, ...) the last one is taken,
which keeps every IOD conformant whatever the attribute's Type, as nothing says which IOD a nested item belongs to;
a sequence is emptied or removed where the choice allows it, for a dummy item rarely conforms.
"""

from __future__ import annotations

import copy
import re
import struct
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from pydicom import charset
from pydicom.datadict import dictionary_has_tag, dictionary_VR
from pydicom.dataelem import DataElement, RawDataElement, convert_raw_data_element
from pydicom.dataset import Dataset
from pydicom.errors import BytesLengthException, InvalidDicomError
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_sequence_item
from pydicom.tag import BaseTag

from gateway.pseudonym import pseudonym_text
from worker.deid_own import Own, without_uids
from worker.deid_profile import Profile
from worker.deid_table import find_action, find_row, safe_private
from worker.deid_values import (
    TEXT_VRS,
    Element,
    clean_words,
    conforms,
    day_shift,
    dummy_value,
    read_text,
    replace_uids,
    shift_temporal,
)

PATIENT_ID, PATIENT_NAME, STUDY_UID, SOP_UID = 0x00100020, 0x00100010, 0x0020000D, 0x00080018
CHARACTER_SET, TIMEZONE = 0x00080005, 0x00080201
ENCRYPTED_ATTRIBUTES = 0x04000500
#: attributes whose value is a class or a syntax, never an instance: structure (PS3.15 E.3.9 note 4)
_STRUCTURAL = frozenset(
    {0x00041510, 0x00041512, 0x0004151A, 0x00080016, 0x0008001A, 0x0008001B, 0x00080062, 0x0008010C, 0x0008040E}
    | {0x00081150, 0x0008115A, 0x00083002, 0x00340003, 0x04000010, 0x04000510, 0x30100052, 0x30100053}
)
_PIXEL_GROUP = 0x7FE0
_CODE_VALUE, _CODE_SCHEME, _CODE_MEANING = 0x00080100, 0x00080102, 0x00080104
_CODE_TEXTS = frozenset({0x00080100, 0x00080102, 0x00080103, 0x00080119, 0x00080120})
_PUBLIC_SCHEMES = frozenset(
    {"DCM", "SCT", "SRT", "SNM3", "LN", "UCUM", "RADLEX", "FMA", "I10", "I10P", "I9", "I9C", "NCIt", "UMLS", "NEU"}
    | {"BI", "MDC", "DCMUID", "ISO3166_1", "RFC5646", "IBSI"}
)
_IDENTIFYING = (PATIENT_ID, 0x00080050, 0x00080080, 0x00080081, 0x00101000, 0x00101040, 0x00200010, 0x00380010)
_OWN_NAMES = frozenset({PATIENT_ID, PATIENT_NAME, 0x00101000, 0x00101001, 0x00101005, 0x00101060, 0x00102297})
#: birth date, telephone, and identifiers of the visit and of what was ordered
_OWN_NUMBERS = frozenset(
    {0x00080050, 0x00100030, 0x00102154, 0x00380010, 0x00380060, 0x00401001, 0x00402016, 0x00402017}
)
#: sequences in which a patient's further names and numbers stand
_OWN_SEQUENCES = frozenset({0x00041220, 0x00101002, 0x00081120, 0x00400275, 0x0040A370, 0x04000561, 0x04000550})
#: identifiers, addresses, file names, comments and dates that the table does not list: identifying whatever it says
_IDENTIFYING_BEYOND_TABLE = frozenset(
    {
        0x00041130,
        0x00041141,
        0x00041500,
        0x00100033,
        0x00100034,
        0x00181803,
        0x00400031,
        0x00400032,
        0x00400400,
        0x00401006,
        0x00401007,
        0x00402006,
    }
    | {0x00402007, 0x0040E001, 0x00880130}
)
#: commands and file meta information have no place in a data set
_FOREIGN_GROUPS = frozenset({0x0000, 0x0002})
_REFERENCES = frozenset({0x00081110, 0x00081111, 0x00081140, 0x00082112})
_CONTENT, _GRAPHICS, _VERIFYING, _FLOW = 0x0040A730, 0x00700001, 0x0040A073, 0x00340001
#: what pydicom raises for bytes that are no DICOM
UNREADABLE = (ValueError, TypeError, LookupError, AttributeError, NotImplementedError, EOFError, OSError,
              RecursionError, struct.error, zlib.error, InvalidDicomError, BytesLengthException)  # fmt: skip


@dataclass(frozen=True)
class Subject:
    """One patient in replacement values. pseudonym: as in the archive's envelope. words: barred from cleaned text.

    own: the patient's names and numbers, which no retained text may repeat.
    """

    pseudonym: str
    days: int
    words: frozenset[str]
    own: Own = Own()


def subject_of(dataset: Dataset, key: bytes) -> Subject:
    """Who a data set is about; without a Patient ID its study stands in, so that one study never shows two patients."""
    encodings = _encodings(dataset, charset.default_encoding)
    texts = {tag: _top_text(dataset, tag, encodings) for tag in (PATIENT_ID, STUDY_UID, SOP_UID)}
    study = texts[STUDY_UID] or f"palimpsest/no-study/{texts[SOP_UID]}"
    label, prefix = (texts[PATIENT_ID], "P") if texts[PATIENT_ID] else (study, "S")
    told = list(_told(dataset, charset.default_encoding))
    words = {word for _, text in told for word in re.findall(r"\w{2,}", text.lower())}
    own = Own.of((text for tag, text in told if tag in _OWN_NAMES), (text for tag, text in told if tag in _OWN_NUMBERS))
    return Subject(pseudonym_text(label, key, prefix), day_shift(prefix + label, key), frozenset(words), own)


def _told(source: Dataset, inherited: str | list[str]) -> Iterator[tuple[int, str]]:
    """(tag, text) of names and identifiers, those in items that hold further ones of the patient included."""
    encodings = _encodings(source, inherited)
    for tag in tags_of(source):
        if tag in _OWN_SEQUENCES:
            try:
                items = list(_parsed(source, element_of(source, tag), encodings).value or ())
            except UNREADABLE:
                continue  # it goes whole
            for item in items:
                yield from _told(item, encodings)
        elif tag in _IDENTIFYING or tag in _OWN_NAMES or tag in _OWN_NUMBERS or _dictionary_vr(tag) == "PN":
            yield int(tag), _top_text(source, tag, encodings)


def tags_of(dataset: Dataset) -> tuple[BaseTag, ...]:
    """All tags; iterating over a pydicom data set would read, and so alter, its elements."""
    return tuple(dataset.keys())


def element_of(dataset: Dataset, tag: int) -> Element:
    """The stored element, unread if it was: also an empty one, which pydicom would read (and choke on a bad VR)."""
    element: Element = dataset.get_item(tag, keep_deferred=True)
    deferred = isinstance(element, RawDataElement) and element.value is None and element.length
    return dataset.get_item(tag) if deferred else element


def like(source: Dataset, elements: Mapping[BaseTag, Element]) -> Dataset:
    """A data set of these elements that pydicom writes as it would write `source`: unread values byte for byte."""
    made = Dataset(dict(sorted(elements.items())), parent_encoding=source._parent_encoding)
    made.set_original_encoding(*source.original_encoding, source.original_character_set)
    made.is_undefined_length_sequence_item = source.is_undefined_length_sequence_item
    return made


class Deidentifier:
    """Applies one profile to one data set and everything nested in it."""

    def __init__(self, profile: Profile, key: bytes, subject: Subject) -> None:
        self._profile = profile
        self._chosen = profile.chosen()
        self._key = key
        self._subject = subject

    def clean(self, source: Dataset) -> tuple[dict[BaseTag, Element], frozenset[int]]:
        """(elements of the cleaned data set, tags of those removed or replaced). `source` is not altered."""
        kept, changed = self._clean(source, charset.default_encoding, words=False)
        if PATIENT_NAME in changed:  # as in the archive's envelope, so that one patient has one name at a destination
            name = DataElement(PATIENT_NAME, "PN", f"PALIMPSEST^{self._subject.pseudonym}")
            kept[name.tag] = name
        return kept, changed

    def _clean(
        self, source: Dataset, inherited: str | list[str], *, words: bool
    ) -> tuple[dict[BaseTag, Element], frozenset[int]]:
        encodings = _encodings(source, inherited)
        kept: dict[BaseTag, Element] = {}
        changed = set()
        overlays = _overlay_groups(source)
        private = self._safe_private(source, encodings)
        for tag in tags_of(source):
            before = element_of(source, tag)
            if tag.group & 1:
                after: Element | None = before if tag in private else None
            elif tag.element == 0 or tag.group in overlays or _never_stays(tag):
                after = None
            else:
                after = self._element(source, before, encodings, words)
            if after is not before:
                changed.add(int(tag))
            if after is not None:
                kept[tag] = copy.copy(after) if after is before and isinstance(after, DataElement) else after
        return kept, frozenset(changed)

    def _element(self, source: Dataset, element: Element, encodings: str | list[str], words: bool) -> Element | None:
        tag = int(element.tag)
        vr = _dictionary_vr(element.tag)
        row = find_row(tag, vr)
        if row is None:
            return self._unlisted(source, element, vr, encodings, words)
        action = find_action(row, self._chosen)
        vr = vr or str(element.VR or "UN")
        if action in ("K", "C"):
            after = self._retain(source, element, vr, encodings, clean=action == "C")
            if after is not None:
                return after
            action = row.basic  # what cannot be kept or cleaned safely goes as if no option were chosen
        return self._protect(source, element, vr, encodings, action)

    # --- retained, cleaned ---

    def _retain(
        self, source: Dataset, element: Element, vr: str, encodings: str | list[str], *, clean: bool
    ) -> Element | None:
        if vr == "SQ":
            return self._items(source, element, encodings, words=clean)
        if not conforms(element, vr, encodings):
            return None
        if not clean:
            return element
        return _same_or(element, vr, encodings, self._cleaned(int(element.tag), vr, read_text(element, encodings)))

    def _cleaned(self, tag: int, vr: str, text: str) -> str | None:
        """C of one value: dates shifted, AE titles keyed, texts cut to safe words; None where it cannot be done."""
        if not text:
            return text
        if vr in ("DA", "DT", "TM"):
            return shift_temporal(text, vr, self._subject.days)
        if tag == TIMEZONE:
            return text if re.fullmatch(r"[+-]\d{4}", text) else None
        if vr == "AE":
            return pseudonym_text(text, self._key, "AE")
        if vr in TEXT_VRS:
            return clean_words(text, self._subject.words) or None
        return None

    def _unlisted(
        self, source: Dataset, element: Element, vr: str, encodings: str | list[str], words: bool
    ) -> Element | None:
        """The standard retains what its table does not list, as long as it is known and is what it claims to be."""
        tag = int(element.tag)
        if not vr:
            return None
        if tag >> 16 == _PIXEL_GROUP:
            return element
        if tag == CHARACTER_SET:
            return element if _known_character_set(read_text(element, encodings)) else None
        if vr == "SQ":
            return self._items(source, element, encodings, words=words)
        if not conforms(element, vr, encodings):
            return None
        if vr == "UI" and not self._profile.retain_uids and tag not in _STRUCTURAL:
            text = read_text(element, encodings)
            return _same_or(element, vr, encodings, replace_uids(text, self._key))
        if tag in _CODE_TEXTS:
            return element
        if vr == "UR":
            return None  # whose address, and which object, it would tell
        text = read_text(element, encodings)
        if vr == "CS":
            return _same_or(element, vr, encodings, self._code_strings(text))
        if vr not in TEXT_VRS:
            return element
        if words:
            cleaned = clean_words(text, self._subject.words)
            return _same_or(element, vr, encodings, cleaned or ("Removed" if text else ""))
        return _same_or(element, vr, encodings, self._without_own(text))

    def _without_own(self, text: str) -> str:
        return self._subject.own.without(text if self._profile.retain_uids else without_uids(text))

    def _code_strings(self, text: str) -> str:
        """Code strings are words of the standard, in which a patient's name may stand too; a number may not."""
        own = self._subject.own
        return "\\".join("ANONYMIZED" if own.holds_number(part) else part for part in text.split("\\"))

    # --- protected ---

    def _protect(
        self, source: Dataset, element: Element, vr: str, encodings: str | list[str], action: str
    ) -> Element | None:
        tag = int(element.tag)
        if action == "X":
            return None
        if vr == "SQ":
            return self._protect_sequence(source, element, encodings, action)
        text = read_text(element, encodings) if vr not in ("OB", "OW", "UN") else ""
        if tag in (PATIENT_ID, PATIENT_NAME):
            own = tag == PATIENT_ID and text
            pseudonym = pseudonym_text(text, self._key, "P") if own else self._subject.pseudonym
            return DataElement(tag, vr, pseudonym)
        if action == "U":
            return _same_or(element, vr, encodings, replace_uids(text, self._key))
        if action.endswith("Z") or not element.value:
            return element if not element.value else DataElement(tag, _vr(element, vr), None)
        return DataElement(tag, _vr(element, vr), dummy_value(tag, vr, text, self._key))

    def _protect_sequence(
        self, source: Dataset, element: Element, encodings: str | list[str], action: str
    ) -> Element | None:
        tag = int(element.tag)
        if action.endswith("U*") or (tag in _REFERENCES and action != "Z"):
            kept = self._items(source, element, encodings, words=False)
            return kept if kept is not None else DataElement(tag, "SQ", [])
        if "Z" in action:
            return element if not element.value else DataElement(tag, "SQ", [])
        if action == "X/D":
            return None
        return DataElement(tag, "SQ", _dummy_items(tag)) if element.value else element

    # --- sequences ---

    def _items(self, source: Dataset, element: Element, encodings: str | list[str], *, words: bool) -> Element | None:
        """The sequence with the profile applied to each item; the same element if nothing changed; None: unreadable."""
        try:
            parsed = _parsed(source, element, encodings)
            items = [self._item(item, encodings, words) for item in parsed.value or ()]
            same = all(now is before for now, before in zip(items, parsed.value or (), strict=True))
            if same and _whole(source, element, parsed):
                return element
        except UNREADABLE:
            return None
        after = DataElement(element.tag, "SQ", items)
        after.is_undefined_length = parsed.is_undefined_length
        return after

    def _item(self, item: Dataset, encodings: str | list[str], words: bool) -> Dataset:
        own = _encodings(item, encodings)
        if words and _CODE_SCHEME in item and _top_text(item, _CODE_SCHEME, own) not in _PUBLIC_SCHEMES:
            return _code("REMOVED", "99REMOVED", "Removed")
        kept, changed = self._clean(item, encodings, words=words)
        return like(item, kept) if changed else item

    # --- private attributes ---

    def _safe_private(self, source: Dataset, encodings: str | list[str]) -> frozenset[int]:
        """Tags of private attributes, creators included, that the Retain Safe Private option keeps."""
        if not self._profile.retain_safe_private:
            return frozenset()
        kept: set[int] = set()
        creators = {int(tag): _top_text(source, tag, encodings) for tag in tags_of(source) if tag.is_private_creator}
        for tag in tags_of(source):
            if not tag.group & 1 or tag.is_private_creator or tag.element < 0x1000:
                continue
            creator_tag = tag.group << 16 | tag.element >> 8
            vr = safe_private().get((creators.get(creator_tag, ""), tag.group, tag.element & 0xFF))
            element = element_of(source, tag)
            if vr is not None and str(element.VR or vr) in (vr, "UN") and conforms(element, vr, encodings):
                kept |= {int(tag), creator_tag}
        return frozenset(kept)


def _same_or(element: Element, vr: str, encodings: str | list[str], text: str | None) -> Element | None:
    """A new element holding `text`, or the same one when that is what it held; None stays None."""
    if text is None:
        return None
    if text == read_text(element, encodings):
        return element
    values: object = text.split("\\") if "\\" in text and vr not in ("LT", "ST", "UT", "UR") else text
    return DataElement(element.tag, _vr(element, vr), values)


def _vr(element: Element, vr: str) -> str:
    """The VR for a replacement: the dictionary's where it is one VR, else what was stored."""
    return vr if len(vr) == 2 else str(element.VR or "UN")


def _dictionary_vr(tag: BaseTag) -> str:
    """The dictionary's VR, '' for an attribute that it does not know."""
    return str(dictionary_VR(tag)) if dictionary_has_tag(tag) or _repeating(tag) else ""


def _repeating(tag: BaseTag) -> bool:
    try:
        dictionary_VR(tag)
    except KeyError:
        return False
    return True


def _parsed(source: Dataset, element: Element, encodings: str | list[str]) -> DataElement:
    """The sequence element with its items read; the stored element stays unread."""
    if isinstance(element, RawDataElement):
        names = [encodings] if isinstance(encodings, str) else list(encodings)
        element = convert_raw_data_element(element, encoding=names, ds=source)
    if element.VR != "SQ":
        raise ValueError("not a sequence")
    return element


def _whole(source: Dataset, element: Element, parsed: DataElement) -> bool:
    """True if the items say all that the stored bytes say: what a lenient parser skipped may be anything."""
    if not isinstance(element, RawDataElement):
        return True
    fp = DicomBytesIO()
    fp.is_implicit_VR, fp.is_little_endian = source.original_encoding
    for item in parsed.value or ():
        write_sequence_item(fp, item, [charset.default_encoding])
    return bytes(fp.getvalue()) == element.value


def _encodings(dataset: Dataset, inherited: str | list[str]) -> str | list[str]:
    """Python codecs of a data set's text; an item without a character set uses its parent's."""
    if CHARACTER_SET not in dataset:
        return inherited
    names = _top_text(dataset, CHARACTER_SET, "ascii").split("\\")
    if not _known_character_set("\\".join(names)):
        return inherited
    found: list[str] = charset.convert_encodings(names)
    return found


def _known_character_set(text: str) -> bool:
    return all(name.strip() in charset.python_encoding for name in text.split("\\"))


def _top_text(dataset: Dataset, tag: int, encodings: str | list[str]) -> str:
    return read_text(element_of(dataset, tag), encodings) if tag in dataset else ""


def _never_stays(tag: BaseTag) -> bool:
    return tag == ENCRYPTED_ATTRIBUTES or tag in _IDENTIFYING_BEYOND_TABLE or tag.group in _FOREIGN_GROUPS


def _overlay_groups(source: Dataset) -> frozenset[int]:
    """Overlay and curve groups: without its data, which always goes, a plane's description describes nothing."""
    return frozenset(tag.group for tag in tags_of(source) if tag.group & 0xFF01 in (0x6000, 0x5000))


# --- dummy items ---


def _code(value: str, scheme: str, meaning: str) -> Dataset:
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = value, scheme, meaning
    return item


def _dummy_items(tag: int) -> Sequence[Dataset]:
    """One item that satisfies the sequence's Type 1 attributes and tells nothing."""
    item = Dataset()
    if tag == _CONTENT:
        item.RelationshipType, item.ValueType = "CONTAINS", "TEXT"
        item.ConceptNameCodeSequence = [_code("121106", "DCM", "Comment")]
        item.TextValue = "Removed"
    elif tag == _GRAPHICS:
        item.GraphicLayer = "REMOVED"
    elif tag == _VERIFYING:
        item.VerifyingOrganization, item.VerificationDateTime = "Removed", "19700101"
        item.VerifyingObserverName, item.VerifyingObserverIdentificationCodeSequence = "Removed", []
    elif tag == _FLOW:
        item.FlowIdentifier = b"\0\0"
    else:
        return [_code("REMOVED", "99REMOVED", "Removed")]
    return [item]
