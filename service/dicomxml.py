"""DICOM JSON (PS3.18 F) as the Native DICOM Model in XML (PS3.19 A.1), one part for each instance; and back."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any
from xml.etree import ElementTree

from pydicom.datadict import keyword_for_tag

from service.media import XML
from service.multipart import close_delimiter, frame_part

__all__ = ["from_native_model", "native_model", "xml_parts"]

NAMESPACE = "http://dicom.nema.org/PS3.19/models/NativeDICOM"
NAME_GROUPS = ("Alphabetic", "Ideographic", "Phonetic")
NAME_PARTS = ("FamilyName", "GivenName", "MiddleName", "NamePrefix", "NameSuffix")


def xml_parts(texts: Iterable[str], boundary: str) -> Iterator[bytes]:
    """multipart/related of one document for each DICOM JSON text."""
    first = True
    for text in texts:
        yield frame_part(boundary, {"Content-Type": XML}, first=first)
        yield native_model(json.loads(text))
        first = False
    yield close_delimiter(boundary)


def native_model(dataset: Mapping[str, Any]) -> bytes:
    """The XML document of one data set."""
    root = ElementTree.Element("NativeDicomModel", {"xmlns": NAMESPACE})
    _attributes(root, dataset)
    return bytes(ElementTree.tostring(root, encoding="utf-8", xml_declaration=True))


def _attributes(parent: ElementTree.Element, dataset: Mapping[str, Any]) -> None:
    for tag, element in dataset.items():
        names = {"tag": tag, "vr": str(element.get("vr", "UN"))}
        keyword = keyword_for_tag(int(tag, 16))
        if keyword:
            names["keyword"] = keyword
        creator = _creator(tag, dataset)
        if creator:
            names["privateCreator"] = creator
        _content(ElementTree.SubElement(parent, "DicomAttribute", names), element)


def _creator(tag: str, dataset: Mapping[str, Any]) -> str:
    group, block = tag[:4], tag[4:6]
    if int(group, 16) % 2 == 0 or block == "00":
        return ""
    values = dataset.get(f"{group}00{block}", {}).get("Value") or [""]
    return _text(values[0])


def _content(node: ElementTree.Element, element: Mapping[str, Any]) -> None:
    if "BulkDataURI" in element:
        ElementTree.SubElement(node, "BulkData", {"uri": str(element["BulkDataURI"])})
    elif "InlineBinary" in element:
        ElementTree.SubElement(node, "InlineBinary").text = str(element["InlineBinary"])
    for number, value in enumerate(element.get("Value") or (), 1):
        counted = {"number": str(number)}
        if element.get("vr") == "SQ":
            _attributes(ElementTree.SubElement(node, "Item", counted), value or {})
        elif element.get("vr") == "PN":
            _name(ElementTree.SubElement(node, "PersonName", counted), value or {})
        else:
            ElementTree.SubElement(node, "Value", counted).text = "" if value is None else _text(value)


def _name(node: ElementTree.Element, groups: Mapping[str, str]) -> None:
    for group in NAME_GROUPS:
        if groups.get(group):
            inside = ElementTree.SubElement(node, group)
            for part, text in zip(NAME_PARTS, _text(groups[group]).split("^"), strict=False):
                if text:
                    ElementTree.SubElement(inside, part).text = text


def _text(value: object) -> str:
    """Text without what XML 1.0 cannot hold."""
    return "".join(char for char in str(value) if char >= " " and char not in "\ufffe\uffff" or char in "\t\n\r")


class _NoDoctype(ElementTree.TreeBuilder):
    """Refuses a document type declaration, and with it every entity."""

    def doctype(self, name: str, pubid: str | None, system: str | None) -> None:
        """Raises ValueError."""
        raise ValueError("a document type declaration")


def from_native_model(text: bytes) -> dict[str, Any]:
    """DICOM JSON of one document. Raises ValueError for what is no Native DICOM Model."""
    try:
        root = ElementTree.fromstring(text, ElementTree.XMLParser(target=_NoDoctype()))  # no entities  # nosec B314
    except (ElementTree.ParseError, LookupError):  # LookupError: an encoding that nobody knows
        raise ValueError("not well-formed") from None
    if _local(root) != "NativeDicomModel":
        raise ValueError("not a Native DICOM Model")
    return _dataset(root)


def _local(node: ElementTree.Element) -> str:
    return str(node.tag).rpartition("}")[2]


def _dataset(parent: ElementTree.Element) -> dict[str, Any]:
    return {
        node.get("tag", "").upper(): _element(node, node.get("vr", "UN"))
        for node in parent
        if _local(node) == "DicomAttribute"
    }


def _element(node: ElementTree.Element, vr: str) -> dict[str, Any]:
    element: dict[str, Any] = {"vr": vr}
    values: list[tuple[int, Any]] = []
    for child in node:
        name, number = _local(child), int(child.get("number") or 1)
        if name == "BulkData":
            element["BulkDataURI"] = child.get("uri") or child.get("uuid") or ""
        elif name == "InlineBinary":
            element["InlineBinary"] = "".join((child.text or "").split())
        elif name == "Item":
            values.append((number, _dataset(child)))
        elif name == "PersonName":
            values.append((number, _person(child)))
        elif name == "Value":
            values.append((number, _scalar(vr, child.text or "")))
    if values:
        element["Value"] = [value for _, value in sorted(values, key=lambda pair: pair[0])]
    return element


def _person(node: ElementTree.Element) -> dict[str, str]:
    name = {}
    for group in node:
        parts = {_local(part): part.text or "" for part in group}
        name[_local(group)] = "^".join(parts.get(part, "") for part in NAME_PARTS).rstrip("^")
    return name


def _scalar(vr: str, text: str) -> Any:
    if vr in ("DS", "FD", "FL"):
        return float(text) if text.strip() else None
    if vr in ("IS", "SL", "SS", "SV", "UL", "US", "UV"):
        return int(text) if text.strip() else None
    return text
