"""Published results as a layer of their own, each with its source."""

from subquad.report.findings import Findings
from subquad.report.literature import Publication
from subquad.report.markup import Markup, element, join
from subquad.report.section import Section
from subquad.report.table import Table

NOTE = (
    "These scores come from other machines, budgets and splits, and are no rows of the leaderboard. Speeds "
    "and memory of other machines are not given, and no ratio to them."
)


def literature_content(findings: Findings) -> Markup | None:
    publications = findings.publications
    if not publications:
        return None
    metric = findings.question.metric.label
    table = Table(
        caption=f"Published {metric} on {findings.question.task}",
        columns=("model", f"{metric}, %", "in"),
        rows=tuple(
            (model, score, publication.name)
            for publication in publications
            for model, score in publication.percent.items()
        ),
    )
    sources = (element("li", _source(publication)) for publication in publications)
    return join((element("p", NOTE), table.html(), element("h3", "Sources"), element("ul", *sources)))


def _source(publication: Publication) -> str:
    return "; ".join(filter(None, (f"{publication.name}: {publication.source}", publication.note)))


LITERATURE = Section(id="literature", title="Literature", of=literature_content)
