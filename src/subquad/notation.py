"""How rows are written, NAME:option=value,option=value, and read back; commas part several of them, too.

A word or a number stands as it is: "performer:features=128". Any other value is quoted, as in
'pattern:expr="Local(64) | Random(3, seed=1)"'; a quote inside is written twice. Quotes may be left
out where nothing is lost: a comma within parentheses belongs to the value.

A sweep gives words or numbers with | between them, without quotes: "performer:features=64|128|256".

A network that mixes mechanisms gives those of its layers with + between them, and *N behind one that N layers
in a row have: "local:width=128*3+softmax". A layer that mixes them gives those of its heads with & between
them, and *N is a share of the heads: "local:width=64*2&taylor". Such a layer takes a number in parentheses:
"(local:width=64&taylor)*3+softmax". Members begin with a small letter, so that "pattern:expr=Local(8) &
CAUSAL" mixes nothing.
"""

import inspect
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import product
from math import inf
from typing import Any, get_args

from subquad.plugins import hint

Option = bool | int | float | str

SPOKEN: dict[type, str] = {
    bool: "true or false",
    int: "a whole number",
    float: "a finite number",
    str: "a word",
}

WORD = re.compile(r"[\w.+-]+")
SWEEP = re.compile(rf"{WORD.pattern}(\|{WORD.pattern})+")
NAME = re.compile(r"([^=,]+)=")
COMMA = re.compile(",")
MIXES = {sign: re.compile(rf"{re.escape(sign)}(?=\s*[a-z(])") for sign in "+&"}
MOST_TIMES = 10_000  # that a member stands in a row
TIMES = re.compile(r"(.*)\*(\d+)", re.DOTALL)
QUOTED = re.compile(r"""(["'])((?:(?!\1).|\1\1)*)\1(?!\1)""", re.DOTALL)


def written(attention: str, options: Mapping[str, Option]) -> str:
    """What users type for a mechanism with these options."""
    return _joined(attention, ((name, str(value)) for name, value in options.items()))


def layers(text: str) -> list[tuple[str, int]]:
    """The members of a network in their order, and how many layers in a row each takes; `ValueError`.

    One that is mixed by head comes without its parentheses. What mixes nothing is a network of one member.
    """
    parts = list(_pieces(text, MIXES["+"]))
    return [(part.strip(), 1) if len(heads(part)) > 1 else _times(part) for part in parts]


def heads(text: str) -> list[tuple[str, int]]:
    """The members of a layer in their order, and the share of its heads that each takes; `ValueError`."""
    parts = list(_pieces(text, MIXES["&"]))
    return [_times(part) for part in parts] if len(parts) > 1 else [(text.strip(), 1)]


def mixes(text: str) -> bool:
    """Whether it names members, of a network or of a layer."""
    return not layers(text) == [(text, 1)] == heads(text)


def repeated(member: str, times: int) -> str:
    """A member that stands so often, as it is written."""
    grouped = f"({member})" if len(heads(member)) > 1 else member
    return grouped if times == 1 else f"{grouped}*{times}"


def _times(part: str) -> tuple[str, int]:
    """A member without its number and parentheses, and the number."""
    counted = TIMES.fullmatch(part.strip())
    member, times = (counted[1], int(counted[2])) if counted else (part.strip(), 1)
    if not times:
        raise ValueError(f"{part.strip()!r} stands nowhere: leave it out, or give it 1 or more")
    if times > MOST_TIMES:
        raise ValueError(f"{part.strip()!r} stands more than {MOST_TIMES:,} times: give it fewer")
    grouped = member.startswith("(") and member.endswith(")")
    return (member[1:-1].strip() if grouped else member), times


def bare(text: str) -> str:
    """A row without its options: "local*3+softmax"."""
    members = [
        ("&".join(repeated(head.partition(":")[0], share) for head, share in heads(member)), count)
        for member, count in layers(text)
    ]
    return members[0][0] if len(members) == 1 else "+".join(repeated(*member) for member in members)


def swept(text: str) -> list[str]:
    """The rows of a sweep, one for each value; those of several options are all that go together.

    A value in quotes, or of more than words between its |, such as a pattern's, is one value.
    """
    for sign, separator in MIXES.items():
        if len(parts := list(_pieces(text, separator))) > 1:
            return [sign.join(chosen) for chosen in product(*map(swept, parts))]
    member, times = _times(text)
    if member != text.strip():
        return [repeated(each, times) for each in swept(member)]
    name, colon, rest = text.partition(":")
    options = list(_options(rest, text)) if colon else []
    values = [
        value.split("|") if not quoted and SWEEP.fullmatch(value) else [value] for _, value, quoted in options
    ]
    if all(len(several) == 1 for several in values):
        return [text]
    names = [option for option, _, _ in options]
    return [_joined(name, zip(names, chosen, strict=True)) for chosen in product(*values)]


def _joined(attention: str, options: Iterable[tuple[str, str]]) -> str:
    chosen = ",".join(f"{name}={_spelled(value)}" for name, value in options)
    return f"{attention}:{chosen}" if chosen else attention


def several(text: str) -> list[str]:
    """The rows of a list, NAME:option=value,option=value,NAME: what is no option begins the next one."""
    rows: list[str] = []
    for piece in _pieces(text, COMMA):
        if rows and (not piece or NAME.match(piece.partition(":")[0])):
            rows[-1] += f",{piece}"
        else:
            rows.append(piece)
    return rows


def _pieces(text: str, separator: re.Pattern[str]) -> Iterator[str]:
    """What stands between the separators outside quotes and parentheses."""
    start, depth, quote = 0, 0, ""
    for place, sign in enumerate(text):
        if quote:
            quote = "" if sign == quote else quote
        elif sign in "\"'" and text[place - 1 : place] in {"=", sign}:  # twice: a quote within the quotes
            quote = sign
        elif depth == 0 and separator.match(text, place):
            yield text[start:place]
            start = place + 1
        else:
            depth += {"(": 1, ")": -1}.get(sign, 0)
    yield text[start:]


def read(text: str) -> tuple[str, list[tuple[str, str]]]:
    """The mechanism's name, and its options in their order with the text of each; `ValueError`."""
    name, colon, rest = text.partition(":")
    return name, [(option, value) for option, value, _ in _options(rest, text)] if colon else []


def read_options(
    cls: type, name: str, text: str, pairs: Sequence[tuple[str, str]], defaults: Mapping[str, Any]
) -> dict[str, Option]:
    """The values of options, as the constructor of `cls` takes them."""
    chosen: dict[str, Option] = {}
    for option, value in pairs:
        if option not in defaults:
            raise ValueError(f"{name!r} has no option {option!r}{hint(option, defaults)}")
        if option in chosen:
            raise ValueError(f"{text!r} gives {option!r} twice")
        chosen[option] = _value(value, cls, name, option)
    return chosen


def but_defaults(chosen: Mapping[str, Option], defaults: Mapping[str, Any]) -> dict[str, Option]:
    """Without the options that are at their defaults."""
    return {option: value for option, value in chosen.items() if value != defaults[option]}


def _options(rest: str, text: str) -> Iterator[tuple[str, str, bool]]:
    """Each option, its value, and whether that stood in quotes."""
    place = 0
    while place <= len(rest):  # one option each time, and the comma behind it
        named = NAME.match(rest, place)
        if not named:
            raise ValueError(f"{text!r} is not of the form NAME:option=value,…")
        place = named.end()
        if quoted := QUOTED.match(rest, place):
            place, value = quoted.end(), quoted[2].replace(2 * quoted[1], quoted[1])
        elif rest[place : place + 1] in {'"', "'"}:
            raise ValueError(f"{text!r} does not end the quotes of {named[1]!r}")
        else:
            end = _end(rest, place, named[1])
            place, value = end, rest[place:end]
        if rest[place : place + 1] not in {"", ","}:
            raise ValueError(
                f"{text!r} has {rest[place:]!r} behind the quotes of {named[1]!r}; a comma is due"
            )
        yield named[1], value, bool(quoted)
        place += 1


def _end(rest: str, start: int, option: str) -> int:
    """Where a value without quotes ends: at the first comma outside parentheses."""
    depth = 0
    for place in range(start, len(rest)):
        if rest[place] == "," and depth == 0:
            return place
        depth += {"(": 1, ")": -1}.get(rest[place], 0)
        if depth < 0:
            break
    if depth:
        sign, value = "(" if depth > 0 else ")", rest[start:]
        raise ValueError(f"{option!r} has a {sign!r} too many in {value!r}: close it, or quote the value")
    return len(rest)


def _spelled(value: str) -> str:
    if WORD.fullmatch(value):
        return value
    quote = "'" if '"' in value and "'" not in value else '"'
    return quote + value.replace(quote, 2 * quote) + quote


def _value(text: str, cls: type, name: str, option: str) -> Option:
    parameter = inspect.signature(cls).parameters[option]
    stated = set(get_args(parameter.annotation)) | {parameter.annotation}
    kinds: list[Any] = [kind for kind in SPOKEN if kind in stated] or [type(parameter.default)]
    for kind in kinds:
        if kind is bool:
            if text.lower() in {"true", "false"}:
                return text.lower() == "true"
            continue
        with suppress(ValueError):
            value = kind(text)
            if value not in (inf, -inf) and value == value:
                return value
    possible = " or ".join(SPOKEN[kind] if kind in SPOKEN else str(kind) for kind in kinds)
    raise ValueError(f"option {option!r} of {name!r} takes {possible}, not {text!r}")
