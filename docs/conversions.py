"""Writes tables of conversions into a page of the docs.

    python docs/conversions.py docs/PAGE.md NAME FOLDER [FOLDER …]

Each folder is one that `subquad convert --out` filled, of the same model. What they are worth stands between
the marks "NAME quality", and what they take by length between those of "NAME cost".
"""

import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from markdown_tables import between_marks, markdown

from subquad.documents import read_json
from subquad.report import formats
from subquad.report.conversion import MEASURES
from subquad.report.conversion_figures import COSTS, SOFTMAX, STAGES, Document


def quality(documents: Sequence[Document]) -> str:
    """A line for each conversion and stage; that of the model as it was stands once."""
    names = [name for name in MEASURES if name in documents[0]["stages"][0]["quality"]]
    headings = ["attention", "stage", "steps", *(MEASURES[name][0] for name in names)]
    rows: list[list[str]] = []
    for document in documents:
        for stage in document["stages"]:
            if stage["name"] == "original" and rows:
                continue
            attention = SOFTMAX if stage["name"] == "original" else f"`{document['asked']['attention']}`"
            scores = (formats.score(stage["quality"][name]) for name in names)
            rows.append([attention, STAGES[stage["name"]], formats.count(stage["steps"] or None), *scores])
    return markdown(headings, rows)


def cost(documents: Sequence[Document]) -> str:
    """A line for each conversion and length; in brackets the model as it was, in the same process."""
    kinds = [kind for kind in ("reading", "decoding") if documents[0][kind]]
    columns = {key: words for key, words in COSTS.items() if key[0] in kinds}
    headings = ["attention", "tokens", *(f"{label}, {unit}" for label, unit in columns.values())]
    return markdown(headings, (row for document in documents for row in cost_rows(document, columns)))


def cost_rows(document: Document, columns: Iterable[tuple[str, str]]) -> Iterator[list[str]]:
    for number, read in enumerate(document["reading"]):
        cells: list[str] = []
        for kind, what in columns:
            measured = document[kind][number]
            ours, theirs = measured["converted"][what], measured["original"][what]
            cells.append(f"{formats.significant(ours)} ({formats.significant(theirs)})")
        yield [f"`{document['asked']['attention']}`", f"{read['tokens']:,}", *cells]


def with_conversions(text: str, name: str, documents: Sequence[Document]) -> str:
    for what, made in ((f"{name} quality", quality(documents)), (f"{name} cost", cost(documents))):
        text = between_marks(text, what, "docs/conversions.py", made)
    return text


if __name__ == "__main__":
    page, name, *folders = sys.argv[1:]
    documents = [read_json(Path(folder) / "conversion.json") for folder in folders]
    Path(page).write_text(with_conversions(Path(page).read_text(), name, documents))
