"""XML in a TIFF's tags: read within bounds, and without whatever XML can do beyond holding data."""

from pathlib import Path
from xml.etree.ElementTree import Element, ParseError

from defusedxml import ElementTree
from defusedxml.common import DefusedXmlException

from wsi_ips.errors import UnsupportedSlide

MOST_CHARACTERS = 64 << 20
"""Philips' holds pictures of the slide, a few megabytes in base64."""

MOST_ELEMENTS = 100_000
"""And twice as many attributes: each takes a few hundred bytes once it is read."""


def parsed_xml(path: Path, text: str, *, most_elements: int = MOST_ELEMENTS) -> Element | None:
    """The root element; None for what is not well-formed. most_elements: and twice as many attributes.

    Raises :class:`UnsupportedSlide` for what is too large, or declares entities or a document type.
    """
    text = text.partition("\0")[0]
    # Counted before a parser sees them: each "<" may be an element, each "=" an attribute.
    if (
        len(text) > MOST_CHARACTERS
        or text.count("<") > 2 * most_elements
        or text.count("=") > 2 * most_elements
    ):
        raise UnsupportedSlide(path, "its XML is larger than that of any scanner")
    try:
        root: Element = ElementTree.fromstring(text, forbid_dtd=True)
    except DefusedXmlException as error:
        raise UnsupportedSlide(
            path, f"its XML declares a document type or entities, and holds no plain data: {error}"
        ) from error
    except (ParseError, ValueError):
        return None
    return root


def local_name(element: Element) -> str:
    """An element's name without its namespace."""
    return element.tag.rpartition("}")[2]
