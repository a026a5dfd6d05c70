"""Writes what the docs say of mechanisms from their traits: `python docs/make.py`.

A test fails when the README and the traits have come apart.
"""

from collections.abc import Iterable
from pathlib import Path

from subquad import catalog, options
from subquad.mechanism import Mechanism

README = Path(__file__).parents[1] / "README.md"
BEGIN, END = "<!-- mechanisms: made by docs/make.py -->", "<!-- end of mechanisms -->"
HEADINGS = ("name", "family", "bidirectional", "causal", "cross", "state", "cost", "options", "paper")


def table(mechanisms: Iterable[type[Mechanism]]) -> str:
    """The mechanisms and their traits, as a table in Markdown."""
    rows = [HEADINGS, tuple("---" for _ in HEADINGS), *(row(cls) for cls in mechanisms)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in rows)


def row(cls: type[Mechanism]) -> tuple[str, ...]:
    traits = cls.traits
    exponent = "n" if traits.cost == 1 else f"n^{traits.cost:g}"
    chosen = ", ".join(f"`{name}={default}`" for name, default in options(cls).items() if name != "dims")
    return (
        f"`{traits.name}`",
        traits.family,
        "yes" if traits.bidirectional else "–",
        traits.causal or "–",
        "yes" if traits.cross else "–",
        traits.state or "–",
        exponent,
        chosen or "–",
        link(traits.paper),
    )


def link(paper: str) -> str:
    kind, _, number = paper.partition(":")
    return f"[{paper}](https://arxiv.org/abs/{number})" if kind == "arXiv" else paper


def renewed(text: str) -> str:
    """`text` with the table between the two marks made anew."""
    before, rest = text.split(BEGIN)
    _, after = rest.split(END)
    return f"{before}{BEGIN}\n{table(catalog().values())}\n{END}{after}"


if __name__ == "__main__":
    README.write_text(renewed(README.read_text()))
