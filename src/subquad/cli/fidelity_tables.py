"""Fidelity as tables for a terminal: by norm and angle, and of a model's layers and heads."""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

from subquad.cli.tables import table
from subquad.report import formats

if TYPE_CHECKING:
    from subquad.experiments.fidelity import FidelityRow
    from subquad.measure.fidelity import HeadFidelity, Spread
    from subquad.measure.layer_fidelity import ModelFidelity

HEADS_ABREAST = 8  # in 80 columns beside the name of a layer
ROUNDING = 1e-9  # what is below, of figures of the order of one, is float64's
OF_WEIGHTS = {
    "KL": "kl",
    "lost": "lost",
    "negative": "negative",
    "entropy": "entropy",
    "rank": "effective_rank",
}
MEANING = (
    "error: |output − softmax's| / |softmax's|, ± over seeds",
    "KL: from the mechanism's weights to softmax's, in nats, on keys where the mechanism has any",
    "lost: softmax's mass on the other keys; negative: the negative share of the mechanism's mass",
    "entropy: of a query's weights, in nats; rank: the effective rank of all weights",
)


def by_norm_and_angle(rows: "Sequence[FidelityRow]") -> list[Table]:
    """A table for each norm and angle, softmax attention itself first."""
    made: list[Table] = []
    for norm, cosine in dict.fromkeys((row.norm, row.cosine) for row in rows):
        some = [row for row in rows if (row.norm, row.cosine) == (norm, cosine)]
        shown = table(f"norm {norm:g}, cosine {cosine:g}", "attention", "error", *OF_WEIGHTS)
        exact = [*[None] * (len(OF_WEIGHTS) - 2), some[0].softmax_entropy, some[0].softmax_effective_rank]
        shown.add_row("softmax", formats.ABSENT, *map(mean_of, exact), style="dim")
        for row in some:
            weights = (getattr(row, name) for name in OF_WEIGHTS.values())
            shown.add_row(Text(row.attention), with_deviation(row.relative_error), *map(mean_of, weights))
        made.append(shown)
    return made


def key(rows: "Iterable[FidelityRow]") -> list[str]:
    """How to read them, and why figures are missing."""
    reasons = dict.fromkeys(f"{row.attention}: {row.reason}" for row in rows if row.reason)
    return [*MEANING, *reasons]


def layers(model: "ModelFidelity") -> Table:
    """A line a layer: its error and whether that is borne, and what its worst head shows."""
    title = f"{model.attention}: layers, and the worst head of each"
    made = table(title, "layer", "error", "bears", "worst", "KL", "lost", "entropy", "|q|", "|k|")
    for each, name in zip(model.layers, short_names(model), strict=True):
        worst = max(each.fidelity.heads, key=error_of)
        made.add_row(
            Text(name),
            mean_of(each.fidelity.relative_error),
            "yes" if each.bears else "no",
            f"{worst.head}",
            *map(mean_of, (worst.kl, worst.lost)),
            f"{mean_of(worst.entropy)} of {rounded(worst.softmax_entropy)}",
            *(rounded(norms.mean) for norms in (worst.query_norm, worst.key_norm)),
            style="" if each.bears else "dim",
        )
    return made


def heads(model: "ModelFidelity") -> list[Table]:
    """Layers × heads: the error of each, so many heads abreast."""
    count = max(len(each.fidelity.heads) for each in model.layers)
    made: list[Table] = []
    for first in range(0, count, HEADS_ABREAST):
        some = range(first, min(first + HEADS_ABREAST, count))
        shown = table(f"{model.attention}: error by head", "layer", *map(str, some))
        for each, name in zip(model.layers, short_names(model), strict=True):
            own = each.fidelity.heads[first : first + HEADS_ABREAST]
            shown.add_row(Text(name), *(marked(head, model.threshold) for head in own))
        made.append(shown)
    return made


def verdict(model: "ModelFidelity") -> str:
    """Which layers bear the conversion, in a sentence."""
    bearing, count = model.bearing, formats.plural(len(model.layers), "layer")
    which = f": {', '.join(bearing)}" if bearing else ""
    verb = "bears" if len(bearing) == 1 else "bear"
    return f"{len(bearing)} of {count} {verb} {model.attention} at a threshold of {model.threshold:g}{which}"


def short_names(model: "ModelFidelity") -> list[str]:
    """Those of the layers, without the last parts that all have in common."""
    names = [each.layer.split(".") for each in model.layers]
    while len({parts[-1] for parts in names}) == 1 and len(names) > 1 and min(map(len, names)) > 1:
        names = [parts[:-1] for parts in names]
    return [".".join(parts) for parts in names]


def error_of(head: "HeadFidelity") -> float:
    return head.relative_error.mean if head.relative_error else float("inf")


def marked(head: "HeadFidelity", threshold: float) -> Text:
    return Text(mean_of(head.relative_error), style="" if error_of(head) <= threshold else "dim")


def mean_of(figure: "Spread | None") -> str:
    return formats.ABSENT if figure is None else rounded(figure.mean)


def with_deviation(figure: "Spread | None") -> str:
    if figure is None or not rounded(figure.deviation or 0.0).strip("0."):
        return mean_of(figure)
    return f"{mean_of(figure)} ±{rounded(figure.deviation or 0.0, digits=1)}"


def rounded(value: float, *, digits: int = 2) -> str:
    return formats.significant(value if abs(value) > ROUNDING else 0.0, digits=digits)
