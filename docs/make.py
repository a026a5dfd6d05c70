"""Writes what the docs say of mechanisms from their docstrings and traits: `python docs/make.py`.

A test fails when the pages, or the README, and the code have come apart.
"""

import inspect
import re
import sys
from collections.abc import Iterable, Iterator
from itertools import groupby
from pathlib import Path

from markdown_tables import between_marks, markdown

from subquad import options
from subquad.mechanism import Mechanism, Traits
from subquad.mechanisms import BUILTIN

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
PAGES = ROOT / "docs" / "mechanisms"
OPTION = re.compile(r"[a-z_]+(, [a-z_]+)*: ")
HEADINGS = ("name", "family", "bidirectional", "causal", "cross", "state", "cost", "paper")


def table(mechanisms: Iterable[type[Mechanism]]) -> str:
    """The mechanisms and their traits, each with a link to its page, as a table in Markdown."""
    return markdown(HEADINGS, map(row, mechanisms))


def row(cls: type[Mechanism]) -> tuple[str, ...]:
    traits = cls.traits
    return (
        f"[`{traits.name}`](docs/mechanisms/{stem(cls)}.md)",
        traits.family,
        "yes" if traits.bidirectional else "–",
        traits.causal or "–",
        "yes" if traits.cross else "–",
        traits.state or "–",
        growth(traits),
        link(traits.paper),
    )


def with_table(text: str) -> str:
    """The README's text with the table of mechanisms made anew."""
    return between_marks(text, "mechanisms", "docs/make.py", table(BUILTIN))


def pages() -> dict[str, str]:
    """One page for each file of mechanisms, by its name; generated classes share their file's page."""
    return {name: page(list(classes)) for name, classes in groupby(BUILTIN, key=stem)}


def page(classes: list[type[Mechanism]]) -> str:
    return "\n\n".join(
        [
            f"# {', '.join(f'`{cls.traits.name}`' for cls in classes)}",
            "<!-- made by docs/make.py from the docstrings and traits -->",
            inspect.cleandoc(sys.modules[classes[0].__module__].__doc__ or ""),
            *(part for cls in classes if cls.__doc__ for part in described(cls)),
            "## What it claims",
            "Every claim is checked: `subquad check NAME`.",
            *claims(classes),
        ]
    ) + "\n"  # fmt: skip


def described(cls: type[Mechanism]) -> Iterator[str]:
    """The class's docstring: its options, what it approximates, and when not to use it."""
    last = {"Approximates ": "", "Not for ": ""}
    rest, listed = [], set()
    for paragraph in inspect.cleandoc(cls.__doc__ or "").split("\n\n"):
        opening = next((opening for opening in last if paragraph.startswith(opening)), None)
        entries = re.split(r"\n(?! )", paragraph)
        if opening:
            last[opening] = paragraph
        elif all(OPTION.match(entry) for entry in entries):
            listed |= {name for entry in entries for name in entry.partition(":")[0].split(", ")}
            rest.append("\n".join(map(item, entries)))
        else:
            rest.append(paragraph)
    missing = [f"paragraph that begins {opening.strip()}" for opening, text in last.items() if not text]
    missing += [f"line for the option {name!r}" for name in options(cls) if name not in listed]
    if missing:
        raise ValueError(f"the docstring of {cls.__name__} has no {' and no '.join(missing)}")
    yield from (f"## {cls.__name__}", *rest, *last.values())


def item(option: str) -> str:
    """A line of a docstring, "name: what it is", as an item of a list."""
    names, _, text = option.partition(": ")
    return f"- {', '.join(f'`{name}`' for name in names.split(', '))}: {' '.join(text.split())}"


def claims(classes: list[type[Mechanism]]) -> Iterator[str]:
    traits = classes[0].traits
    yield markdown(
        ("name", "options and defaults"), ((f"`{cls.traits.name}`", chosen(cls)) for cls in classes)
    )
    forms = [
        form for form, has in (("bidirectional", traits.bidirectional), ("causal", traits.causal)) if has
    ]
    cross = "attends across sequences" if traits.cross else "attends within one sequence"
    lines = [
        ("Forms", f"{' and '.join(forms)}; {cross}."),
        ("Causality", CAUSALITY[traits.causal]),
        ("State of a stream", STATE[traits.state]),
        ("Cost", f"work and memory grow no faster than {growth(traits)}."),
        ("Weights", "those of a query sum to one." if traits.normalised else "they need not sum to one."),
        ("Equals softmax attention", equals(traits)),
        ("Padding", "anywhere, of any content; real tokens come out as if it were not in the sequence."),
    ]
    yield "\n".join(f"- **{what}**: {text}" for what, text in lines)


CAUSALITY = {
    "strict": "an output depends on nothing later.",
    "values": "values only. Which keys a query sees depends on later tokens, so a language model would learn "
    'to read the future from that choice: layers refuse `causal=True`, and accept `causal="values"`.',
    None: "there is no causal form.",
}
STATE = {
    "bounded": "bounded: the same size after a million tokens as after one.",
    "growing": "growing: it keeps the keys and values so far.",
    None: "it does not stream.",
}


def equals(traits: Traits) -> str:
    if traits.limit is None:
        return "not for any options."
    if not traits.limit:
        return "always."
    limit = ", ".join(f"`{name}={value}`" for name, value in traits.limit.items())
    return f"with {limit}, on 24 tokens, within {traits.limit_tol:g} of what uniform attention gets wrong."


def chosen(cls: type[Mechanism]) -> str:
    return ", ".join(f"`{name}={value}`" for name, value in options(cls).items() if name != "dims") or "–"


def growth(traits: Traits) -> str:
    return "n" if traits.cost == 1 else f"n^{traits.cost:g}"


def stem(cls: type[Mechanism]) -> str:
    return cls.__module__.rpartition(".")[2].replace("_", "-")


def link(paper: str) -> str:
    kind, _, number = paper.partition(":")
    return f"[{paper}](https://arxiv.org/abs/{number})" if kind == "arXiv" else paper


if __name__ == "__main__":
    README.write_text(with_table(README.read_text()))
    for stale in PAGES.glob("*.md"):
        stale.unlink()
    PAGES.mkdir(exist_ok=True)
    for name, text in pages().items():
        (PAGES / f"{name}.md").write_text(text)
