"""The language of patterns: "Local(64) | Random(3, seed=1)", read by a grammar and never evaluated.

    union        = intersection { "|" intersection } ;
    intersection = rounded { "&" rounded } ;
    rounded      = pattern { "." "rounded" "(" argument ")" } ;
    pattern      = "(" union ")" | "CAUSAL" | name "(" [ argument { "," argument } ] ")" ;
    argument     = [ name "=" ] ( number | union ) ;
    name         = letter { letter | digit | "_" } ;
    number       = [ "-" ] digit { digit } ;

Names and arguments are those of the classes in `NAMED`: "Blocks(Local(1), 64)", "PerHead(Local(4), CAUSAL)".
Both operators group to the left and `&` binds tighter than `|`, as in Python; so what `repr` says of a
pattern is an expression for it, and "(Local(64) | Global(2)).rounded(64)" is what it is in Python.
"""

import inspect
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from difflib import get_close_matches
from functools import lru_cache
from typing import NamedTuple

from subquad.patterns.atoms import (
    Columns,
    Dilated,
    Fixed,
    Global,
    Local,
    Random,
    Ring,
    Rows,
    Strided,
    Summaries,
)
from subquad.patterns.pattern import CAUSAL, Blocks, Pattern, PerHead

KINDS = (Local, Dilated, Strided, Fixed, Summaries, Global, Columns, Rows, Random, Ring, Blocks, PerHead)
NAMED: Mapping[str, Callable[..., Pattern]] = {kind.__name__: kind for kind in KINDS}

CHARACTERS = 4_000  # of an expression at most
PATTERNS = 100  # in an expression at most; every recursion over a pattern stays far from Python's limit
NESTED = 20  # open parentheses at most
DIGITS = 9  # of a number at most; the product of two fits into 64 bits
SHOWN = 40  # characters of a word, and on either side of a mistake, that a message repeats

TOKEN = re.compile(
    r"(?P<name>[A-Za-z_][A-Za-z_0-9]*)|(?P<number>-?[0-9]+(\.[0-9]+)?)|(?P<sign>[|&(),=.])|(?P<other>\S)"
)


def parse(text: str) -> Pattern:
    """The pattern that an expression stands for.

    Raises `ValueError` in one line with the place of the mistake and what is due there: the nearest known
    name, the arguments of a pattern, or the range of an argument.
    """
    return Reader(text).read()


@lru_cache(256)
def read_again(text: str) -> Pattern:
    """The pattern that said so of itself by `repr`, without the limits that are for what others write.

    Raises `ValueError` for a pattern that is none of `KINDS`.
    """
    return Reader(text, trusted=True).read()


class Token(NamedTuple):
    kind: str  # "name", "number", "sign", "other" or "end"
    text: str
    start: int  # its first character, from 0


class Reader:
    """Reads one expression from left to right, a method for each rule; what is `trusted` has no limits."""

    def __init__(self, text: str, *, trusted: bool = False) -> None:
        self.text, self.trusted = text, trusted
        if not trusted and len(text) > CHARACTERS:
            raise self.refusal(0, f"{len(text):,} characters are too many; {CHARACTERS:,} is the most")
        found = [Token(str(match.lastgroup), match[0], match.start()) for match in TOKEN.finditer(text)]
        self.tokens = [*found, Token("end", "", len(text))]
        self.position = 0  # of the next token
        self.patterns = self.nested = 0  # patterns so far, parentheses open here

    def read(self) -> Pattern:
        pattern = self.union()
        if self.next.kind != "end":
            raise self.expected("'|', '&' or the end")
        return pattern

    def union(self) -> Pattern:
        pattern = self.intersection()
        while operator := self.take("|"):
            other = self.intersection()
            with self.refusing(operator):
                pattern = pattern | other
        return pattern

    def intersection(self) -> Pattern:
        pattern = self.rounded()
        while operator := self.take("&"):
            other = self.rounded()
            with self.refusing(operator):
                pattern = pattern & other
        return pattern

    def rounded(self) -> Pattern:
        pattern = self.pattern()
        while self.take("."):
            self.count()
            if self.next.text != "rounded":
                raise self.expected("'rounded'")
            pattern = self.call(pattern.rounded)
        return pattern

    def pattern(self) -> Pattern:
        self.count()
        first = self.next
        if self.take("("):
            with self.within():
                pattern = self.union()
            if not self.take(")"):
                raise self.expected("'|', '&' or ')'")
            return pattern
        if first.kind != "name":
            raise self.expected("a pattern")
        if first.text in NAMED:
            return self.call(NAMED[first.text])
        if first.text != "CAUSAL":
            near = _hint(first.text, (*NAMED, "CAUSAL"))
            raise self.refusal(first.start, f"unknown pattern {_short(first.text)}{near}")
        self.advance()
        return CAUSAL

    def call(self, make: Callable[..., Pattern]) -> Pattern:
        """A name with the arguments that `make` takes."""
        name = self.advance()
        parameters = inspect.signature(make).parameters
        signature = f"{name.text}({', '.join(map(_spoken, parameters.values()))})"
        if not self.take("("):
            raise self.expected("'('", of=signature)
        given: list[int | Pattern] = []
        named: dict[str, int | Pattern] = {}
        with self.within():
            while not self.take(")"):
                if (given or named) and not self.take(","):
                    raise self.expected("',' or ')'", of=signature)
                label = self.label()
                if label is not None:
                    if label.text not in parameters or label.text in named:
                        fault = (
                            f"{_short(label.text)} is given twice"
                            if label.text in named
                            else "no such argument"
                        )
                        raise self.refusal(label.start, f"{fault}: {signature}")
                    named[label.text] = self.argument(parameters[label.text], signature)
                elif named:
                    raise self.expected("a name and '=', as before it", of=signature)
                else:
                    place = min(len(given), len(parameters) - 1)
                    given.append(self.argument([*parameters.values()][place], signature))
        try:
            bound = inspect.signature(make).bind(*given, **named)
        except TypeError as error:  # too few, too many, or one given by place and by name
            raise self.refusal(name.start, f"{error}: {signature}") from error
        with self.refusing(name):
            return make(*bound.args, **bound.kwargs)

    def label(self) -> Token | None:
        """The name before "=", where there is one."""
        if self.next.kind != "name" or self.tokens[self.position + 1].text != "=":
            return None
        name = self.advance()
        self.advance()
        return name

    def argument(self, parameter: inspect.Parameter, signature: str) -> int | Pattern:
        if parameter.annotation is not int:
            return self.union()
        if self.next.kind != "number" or "." in self.next.text:
            raise self.expected(f"a whole number for {parameter.name}", of=signature)
        if not self.trusted and len(self.next.text) > DIGITS:
            raise self.refusal(self.next.start, f"a number has {DIGITS} digits at most")
        return int(self.advance().text)

    @property
    def next(self) -> Token:
        return self.tokens[self.position]

    def advance(self) -> Token:
        self.position += 1
        return self.tokens[self.position - 1]

    def take(self, sign: str) -> Token | None:
        """The next token, if it is this sign."""
        return self.advance() if self.next.text == sign else None

    def count(self) -> None:
        """One pattern more."""
        self.patterns += 1
        if not self.trusted and self.patterns > PATTERNS:
            raise self.refusal(self.next.start, f"too many patterns; {PATTERNS} is the most")

    @contextmanager
    def within(self) -> Iterator[None]:
        """Inside one parenthesis more."""
        self.nested += 1
        if not self.trusted and self.nested > NESTED:
            raise self.refusal(self.next.start, f"parentheses nest too deeply; {NESTED} is the most")
        yield
        self.nested -= 1

    @contextmanager
    def refusing(self, token: Token) -> Iterator[None]:
        """Say where it was that a pattern refused what it was given."""
        try:
            yield
        except ValueError as error:
            raise self.refusal(token.start, str(error)) from error

    def expected(self, due: str, *, of: str = "") -> ValueError:
        found = _short(self.next.text) if self.next.text else "the end"
        return self.refusal(self.next.start, f"expected {due}, not {found}" + (of and f": {of}"))

    def refusal(self, start: int, reason: str) -> ValueError:
        shown = self.text[max(0, start - SHOWN) : start + SHOWN]
        before, after = "…" * (start > SHOWN), "…" * (start + SHOWN < len(self.text))
        return ValueError(f"pattern {before + shown + after!r}, at character {start + 1}: {reason}")


def _hint(name: str, known: Iterable[str]) -> str:
    """The nearest known name whatever its case, or all of them."""
    spelled = {pattern.casefold(): pattern for pattern in known}
    near = get_close_matches(name.casefold(), spelled, n=1)
    return f"; did you mean {spelled[near[0]]!r}?" if near else f"; known: {', '.join(spelled.values())}"


def _short(word: str) -> str:
    return repr(word if len(word) <= SHOWN else word[:SHOWN] + "…")


def _spoken(parameter: inspect.Parameter) -> str:
    return str(parameter.replace(annotation=inspect.Parameter.empty))
