"""Expressions of patterns mean what they mean in Python; whatever else is typed is refused in one line."""

import re

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from subquad import patterns
from subquad.patterns import CAUSAL, Blocks, Global, Local, Pattern, PerHead, Random
from subquad.patterns.grammar import CHARACTERS, NAMED, PATTERNS, parse

NAMESPACE = {name: getattr(patterns, name) for name in patterns.__all__}
NUMBERS = st.integers(1, 9)


def call(name, *arguments):
    return st.tuples(*arguments).map(lambda given: f"{name}({', '.join(map(str, given))})")


ATOMS = st.one_of(
    st.just("CAUSAL"),
    *[call(name, NUMBERS) for name in ("Local", "Strided", "Global", "Columns", "Rows", "Random", "Ring")],
    *[call(name, NUMBERS, NUMBERS) for name in ("Dilated", "Fixed", "Summaries", "Ring", "Global")],
    st.builds("Summaries({}, {}, before={})".format, NUMBERS, NUMBERS, NUMBERS),
    st.builds("Random(seed={}, count={})".format, NUMBERS, NUMBERS),
    st.builds("Columns({}, last={})".format, NUMBERS, NUMBERS),
)
EXPRESSIONS = st.recursive(
    ATOMS,
    lambda inner: st.one_of(
        st.builds("{} | {}".format, inner, inner),
        st.builds("{}&{}".format, inner, inner),
        st.builds("( {})".format, inner),
        st.builds("Blocks({}, {})".format, inner, NUMBERS),
        st.builds("({}).rounded({})".format, inner, NUMBERS),
    ),
    max_leaves=6,
)
EXPRESSIONS |= st.lists(EXPRESSIONS, min_size=1, max_size=3).map(lambda each: f"PerHead({', '.join(each)})")


def refusal(text):
    """Why it is no pattern; nothing if it is one."""
    try:
        parse(text)
    except ValueError as error:
        return str(error)
    return ""


def in_python(text):
    """The oracle: what Python makes of an expression. Only texts that the strategies above wrote get here."""
    try:
        return eval(text, {"__builtins__": {}}, NAMESPACE)
    except ValueError:
        return None


@settings(max_examples=60, deadline=None)
@given(EXPRESSIONS)
@example("Local(1) | Local(2) & Local(3) | Local(4)")
@example("CAUSAL & Local(1).rounded(2) & Local(3)")
def test_an_expression_means_what_it_means_in_python(text):
    meant = in_python(text)
    if meant is None:
        assert ", at character" in refusal(text)
    else:
        assert parse(text) == meant


@settings(max_examples=60, deadline=None)
@given(EXPRESSIONS)
@example("Local(1) | (Local(2) | Local(3))")
@example("(Local(1) | Local(2)) & (Local(3) & Local(4))")
@example("PerHead(Random(1, seed=2) | CAUSAL, Blocks(Global(1, last=2), 4))")
def test_what_a_pattern_prints_is_an_expression_for_it(text):
    pattern = in_python(text)
    assume(pattern is not None)
    assert parse(repr(pattern)) == pattern


@settings(max_examples=40, deadline=None)
@given(EXPRESSIONS, st.sampled_from(["", " ", "\n\t "]))
def test_blanks_and_parentheses_around_it_change_nothing(text, blank):
    spread = re.sub(r"\b|(?=\W)", lambda _: blank, text)
    expected = in_python(text)
    assume(expected is not None)
    assert parse(f"{blank}({spread}{blank})") == expected


def test_arguments_go_by_place_or_by_name():
    assert parse("Random(3, seed=1)") == parse("Random(seed=1, count=3)") == Random(3, seed=1)
    assert parse("Blocks(size=4, pattern=Local(1))") == Blocks(Local(1), 4)


def test_every_pattern_has_its_name_in_the_language():
    kinds = {
        name for name, value in NAMESPACE.items() if isinstance(value, type) and issubclass(value, Pattern)
    }
    assert kinds - {"Pattern", "Union", "Intersection"} == set(NAMED)


@pytest.mark.parametrize(
    ("text", "place", "reason"),
    [
        ("", 1, "expected a pattern, not the end"),
        ("Local", 6, "expected '(', not the end: Local(width)"),
        ("Local(3", 8, "expected ',' or ')', not the end: Local(width)"),
        ("Local(3))", 9, "expected '|', '&' or the end, not ')'"),
        ("(Local(3)", 10, "expected '|', '&' or ')', not the end"),
        ("Local(3) Global(2)", 10, "expected '|', '&' or the end, not 'Global'"),
        ("Local(3) |", 11, "expected a pattern, not the end"),
        ("& Local(3)", 1, "expected a pattern, not '&'"),
        ("Local(3) | Glob(2)", 12, "unknown pattern 'Glob'; did you mean 'Global'?"),
        ("local(3)", 1, "unknown pattern 'local'; did you mean 'Local'?"),
        ("causal", 1, "unknown pattern 'causal'; did you mean 'CAUSAL'?"),
        ("__import__('os')", 1, "unknown pattern '__import__'; known: Local, Dilated, Strided"),
        ("Pattern()", 1, "unknown pattern 'Pattern'"),
        ("Local()", 1, "missing a required argument: 'width': Local(width)"),
        ("Local(3, 4)", 1, "too many positional arguments: Local(width)"),
        ("Random(3, count=3)", 1, "multiple values for argument 'count': Random(count, seed=0)"),
        ("Random(3, sed=3)", 11, "no such argument: Random(count, seed=0)"),
        ("Random(3, seed=1, seed=1)", 19, "'seed' is given twice: Random(count, seed=0)"),
        ("Random(seed=1, 3)", 16, "expected a name and '=', as before it, not '3': Random(count, seed=0)"),
        ("Local(2.5)", 7, "expected a whole number for width, not '2.5': Local(width)"),
        ("Local(True)", 7, "expected a whole number for width, not 'True': Local(width)"),
        ("Local(Local(1))", 7, "expected a whole number for width, not 'Local': Local(width)"),
        ("Blocks(4, Local(1))", 8, "expected a pattern, not '4'"),
        ("CAUSAL | Local(-3)", 10, "Local: width must be a whole number of at least 0, not -3"),
        ("Local(1).round(3)", 10, "expected 'rounded', not 'round'"),
        ("Local(1).rounded()", 10, "missing a required argument: 'block': rounded(block)"),
        ("Local(1) | Strided(3).rounded(4)", 23, "Strided(3) has no exact rounding to blocks of 4"),
        ("PerHead()", 1, "PerHead needs a pattern for each head"),
        (
            "PerHead(Local(1), CAUSAL) | PerHead(Local(1))",
            27,
            "cannot combine patterns for 2 and for 1 heads",
        ),
        ("Local(1) & Ring(1) & CAUSAL", 20, "Local(1) & Ring(1) & CAUSAL has no meaning"),
        ("Local(1) § 2", 10, "expected '|', '&' or the end, not '§'"),
        ("Local(٣)", 7, "expected a whole number for width, not '٣'"),
        ("Local(1234567890)", 7, "a number has 9 digits at most"),
    ],
)
def test_a_mistake_is_reported_with_its_place_and_its_remedy(text, place, reason):
    assert refusal(text).startswith(f"pattern {text!r}, at character {place}: {reason}")


def test_of_a_long_expression_only_the_neighbourhood_of_the_mistake_is_shown():
    told = refusal("Local(1) | " * 50 + "x" * 900 + " | Local(1)" * 40)
    assert len(told) < 400
    assert "| Local(1) | xxx" in told


PIECES = [
    *NAMED,
    "CAUSAL",
    "rounded",
    "seed",
    "x",
    *"|&(),=.",
    " ",
    "3",
    "-1",
    "2.5",
    "٣",
    "'",
    "\n",
    "\0",
    "é",
]


@given(st.lists(st.sampled_from(PIECES), max_size=30).map("".join) | st.text(max_size=30))
def test_whatever_is_typed_gives_a_pattern_or_one_line(text):
    assert refusal(text).isprintable()  # and so has one line, whatever the text holds


@pytest.mark.parametrize(
    "text",
    [
        "(" * CHARACTERS,
        "(" * (CHARACTERS + 1),
        "PerHead(" * 400,
        "Blocks(" * 500,
        "(" * 1500 + "CAUSAL" + ")" * 1500,
        "Blocks(" * 200 + "Local(1)" + ", 2)" * 200,
        "|".join(["CAUSAL"] * 400),
        "&".join(["Local(1)"] * 400),
        "Local(1)" + ".rounded(1)" * 300,
        "Local(" + "9" * 3000 + ")",
        "x" * CHARACTERS,
    ],
    ids=lambda text: text[:12],
)
def test_an_expression_without_end_is_refused_in_one_short_line(text):
    assert 0 < len(refusal(text)) < 400


def test_the_largest_expression_can_be_printed_compared_and_asked():
    text = "|".join(["Local(1)"] * (PATTERNS - 1))
    pattern = parse(text)
    assert parse(repr(pattern)) == pattern
    assert hash(pattern) == hash(parse(text))
    assert pattern.mask(4).sum() == 10


def test_the_readmes_expressions_are_read():
    assert parse("Local(64) | Global(2) | Random(3)") == Local(64) | Global(2) | Random(3)
    assert parse("PerHead(Local(4), Local(8)) & CAUSAL") == PerHead(Local(4) & CAUSAL, Local(8) & CAUSAL)
