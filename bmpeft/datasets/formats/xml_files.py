"""XML without entities: a document that declares its own (and could so name files or grow without end) is refused."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import IO
from xml.etree.ElementTree import Element, ParseError

from defusedxml import DefusedXmlException
from defusedxml import ElementTree as SafeElementTree

from bmpeft.errors import DataError

LARGEST_DOCUMENT = 32 * 2**20


def parse_xml(path: Path, content: bytes) -> Element:
    """The root of a document; `path` is for messages.

    Raises:
        DataError: too large, broken, or with a document type.
    """
    if len(content) > LARGEST_DOCUMENT:
        raise DataError(path, f"is larger than {LARGEST_DOCUMENT >> 20} MiB")
    try:
        root: Element = SafeElementTree.fromstring(content, forbid_dtd=True)
    except (DefusedXmlException, ParseError, ValueError, LookupError) as error:
        raise DataError(path, _problem(error)) from None
    return root


def elements(path: Path, file: IO[bytes], name: str) -> Iterator[Element]:
    """The elements of a document that have this local name, whatever their namespace, each freed after its use.

    Raises:
        DataError: broken, or with a document type.
    """
    try:
        for _, element in SafeElementTree.iterparse(file, events=("end",), forbid_dtd=True):
            if local_name(element) == name:
                yield element
                element.clear()
    except (DefusedXmlException, ParseError, ValueError, LookupError) as error:
        raise DataError(path, _problem(error)) from None


def local_name(element: Element) -> str:
    """An element's name without its namespace."""
    return element.tag.rpartition("}")[2]


def text_of(element: Element | None) -> str:
    """All text within an element, with runs of white space as one space; "" for None."""
    return "" if element is None else " ".join("".join(element.itertext()).split())


def _problem(error: Exception) -> str:
    if isinstance(error, DefusedXmlException):
        return "XML with a document type or entities is refused"
    position = getattr(error, "position", None)
    return f"broken XML at line {position[0]}" if position else "broken XML"
