"""HTML that cannot forget to escape: everything is text unless it was built here."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence
from typing import Any

_VOID = frozenset({"input", "meta", "link", "br"})


class Markup(str):
    """HTML whose text is already escaped."""

    __slots__ = ()


def escape(value: object) -> Markup:
    """Return a value as HTML text; :class:`Markup` passes as it is."""
    return value if isinstance(value, Markup) else Markup(html.escape(str(value)))


def join(parts: Iterable[object], separator: str = "") -> Markup:
    """Return the parts one after another, each escaped if it is not markup; None is left out."""
    return Markup(separator.join(escape(part) for part in parts if part is not None))


def tag(name: str, *children: object, **attributes: Any) -> Markup:
    """Return an element.

    Args:
        name: of the element.
        children: text (escaped), markup or None (left out).
        attributes: a trailing ``_`` is dropped and other ``_`` become ``-``; True stands for an attribute without a
            value, None and False for none at all.
    """
    words = [name]
    for attribute, value in attributes.items():
        if value is None or value is False:
            continue
        label = attribute.rstrip("_").replace("_", "-")
        words.append(label if value is True else f'{label}="{escape(value)}"')
    opening = f"<{' '.join(words)}>"
    return Markup(opening if name in _VOID else f"{opening}{join(children)}</{name}>")


def cell(text: object, value: float | str | None = None, **attributes: Any) -> Markup:
    """Return a table cell; numbers are set to the right and sort by ``value``."""
    numeric = isinstance(value, (int, float))
    return tag("td", text, class_="num" if numeric else None, data_v=value, **attributes)


def table(
    caption: str, headers: Sequence[object], rows: Iterable[Markup], foot: Markup | None = None, **attributes: Any
) -> Markup:
    """Return a table in a box that scrolls sideways; ``rows`` are ``tr`` elements."""
    head = tag("thead", tag("tr", *map(_header, headers)))
    body = tag("tbody", join(rows, "\n"))
    parts = (tag("caption", caption), head, body, tag("tfoot", foot) if foot else None)
    box = tag("table", *parts, **attributes)
    return tag("div", box, class_="scroll", role="region", tabindex="0", aria_label=caption)


def num(header: object) -> Markup:
    """Return the header of a column of numbers."""
    return tag("th", header, scope="col", class_="num")


def _header(header: object) -> Markup:
    ready = isinstance(header, Markup) and header.startswith("<th")
    return escape(header) if ready else tag("th", header, scope="col")


def empty(text: str) -> Markup:
    """Return what a section says that has nothing to show."""
    return tag("p", text, class_="empty")
