"""Pages as a strict parser reads them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from xml.etree.ElementTree import Element

import html5lib
from html5lib.constants import E

XHTML = "{http://www.w3.org/1999/xhtml}"


def parsed(text: str) -> Element:
    """The document. Fails at whatever HTML does not allow, and where an id is there twice."""
    parser = html5lib.HTMLParser(namespaceHTMLElements=True)
    root: Element = parser.parse(text)
    assert not parser.errors, [(position, E[code] % values) for position, code, values in parser.errors]
    ids = [each.attrib["id"] for each in root.iter() if "id" in each.attrib]
    assert len(ids) == len(set(ids))
    return root


def text_of(element: Element) -> str:
    return re.sub(r"\s+", " ", "".join(element.itertext())).strip()


def links(root: Element) -> Iterator[str]:
    """Whatever an element of the page loads, links or sends to."""
    for each in root.iter():
        for name in ("href", "src", "action", "hx-get", "{http://www.w3.org/1999/xlink}href"):
            if name in each.attrib:
                yield each.attrib[name]


def rows(root: Element) -> list[list[str]]:
    """The cells of the first table's body."""
    body = next(root.iter(f"{XHTML}tbody"))
    return [[text_of(cell) for cell in row] for row in body]
