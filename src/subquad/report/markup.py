"""HTML that cannot be forged: text is escaped when it enters an element, and only markup is not text."""

import re
from collections.abc import Iterable
from html import escape

HEADING = re.compile(r"(</?h)([2-5])\b")  # text has no < and no quote that could be taken for either of these
NAMING = re.compile(r' (id|for|aria-labelledby|download)="([^"]*)"')


class Markup(str):
    """A string that is HTML already."""

    __slots__ = ()


Attribute = str | int | float | bool | None


def element(name: str, *children: str, **attributes: Attribute) -> Markup:
    """`<name …>children</name>`. Children that are no `Markup`, and attributes, are escaped.

    `class_` becomes `class`, `aria_label` becomes `aria-label`; True gives a bare attribute, None and
    False none at all.
    """
    return Markup(f"<{name}{_written(attributes)}>{join(children)}</{name}>")


def nested(content: Markup, prefix: str) -> Markup:
    """The content as part of a section among others like it: headings a level deeper, ids of its own."""
    deeper = HEADING.sub(lambda tag: f"{tag[1]}{int(tag[2]) + 1}", content)
    return Markup(NAMING.sub(rf' \1="{prefix}-\2"', deeper))


def join(parts: Iterable[str], *, by: str = "") -> Markup:
    """The parts one after the other, each escaped unless it is markup."""
    return Markup(_escaped(by).join(map(_escaped, parts)))


def _escaped(part: str) -> str:
    return part if isinstance(part, Markup) else escape(part)


def _written(attributes: dict[str, Attribute]) -> str:
    written = ""
    for name, value in attributes.items():
        if value is None or value is False:
            continue
        written += f" {name.rstrip('_').replace('_', '-')}"
        if value is not True:
            written += f'="{escape(str(value))}"'
    return written
