"""HTML that cannot be forged: text is escaped when it enters an element, and only markup is not text."""

from collections.abc import Iterable
from html import escape


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
