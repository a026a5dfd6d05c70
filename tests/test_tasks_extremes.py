"""Numbers and times at the ends of their ranges: encoded as finite numbers, or shown with their rows."""

import math
import warnings
from datetime import date, datetime
from decimal import Decimal

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tables import changed, events, load_own, owners, written

from subquad.fields import SPLITS
from subquad.objectives import Regression
from subquad.tasks import DataError
from subquad.tasks.boosting import features
from subquad.tasks.columns import GREATEST
from subquad.tasks.encoding import Encoding, moment
from subquad.tasks.events import EventData

EVENTS, OWNERS = events(), owners()


def loaded(folder, *, events=EVENTS, owners=OWNERS, kind="binary", end="parquet") -> EventData:
    schema = changed("events", path=f"events.{end}")
    schema["target"] |= {"path": f"owners.{end}", "kind": kind}
    return load_own(written(folder, events=events, owners=owners, schema=schema))


def refusal(folder, **tables) -> str:
    with pytest.raises(DataError) as caught:
        loaded(folder, **tables)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def put(table: pl.DataFrame, column: str, dtype, *values: object) -> pl.DataFrame:
    """The same with these values in the first rows of a column."""
    given = table[column].cast(dtype).to_list()
    given[: len(values)] = values
    return table.with_columns(pl.Series(column, given, dtype=dtype))


def numbered(dtype) -> pl.DataFrame:
    """The events with days since 2020 for dates."""
    days = pl.col("date").str.to_date() - pl.date(2020, 1, 1)
    return EVENTS.with_columns(date=days.dt.total_days().cast(dtype))


def all_finite(data: EventData) -> None:
    numbers = [data.encoding.mean, data.encoding.deviation]
    if data.objective.quantity:
        numbers += [data.objective.to_json()[name] for name in ("centre", "scale")]
    assert all(np.isfinite(number).all() for number in numbers)
    for split in SPLITS:
        for batch in data.batches(split, size=8, length=99, seed=0, epoch=0, shuffle=False):
            assert batch.inputs[1].isfinite().all()
            assert batch.target.isfinite().all()


@pytest.mark.parametrize("column", ["amount", "date"])
@pytest.mark.parametrize("value", [1e308, -1e308, 2e30])
@pytest.mark.parametrize("end", ["csv", "parquet"])
def test_a_number_too_large_to_reckon_with_is_shown_with_its_row(tmp_path, column, value, end):
    table = put(numbered(pl.Float64), column, pl.Float64, 1.0, value, -value)
    message = refusal(tmp_path, events=table, end=end)
    assert f"column {column!r}: 2 values " in message
    assert "1e+30" in message
    shown = table[column][1:3] if end == "parquet" else table[column][1:3].cast(pl.String)
    assert message.endswith(f"row 2: {shown[0]!r}, row 3: {shown[1]!r}")


@pytest.mark.parametrize("value", [1e308, -1e308])
def test_a_quantity_too_large_to_reckon_with_is_shown_with_its_row(tmp_path, value):
    message = refusal(tmp_path, owners=put(OWNERS, "old", pl.Float64, value), kind="regression")
    assert message.endswith(f"row 1: {value!r}")


@settings(max_examples=15, deadline=None)
@given(
    amounts=st.lists(st.floats(-GREATEST, GREATEST), min_size=3, max_size=40),
    days=st.lists(st.floats(-GREATEST, GREATEST), min_size=3, max_size=40),
    answers=st.lists(st.floats(-GREATEST, GREATEST), min_size=3, max_size=40, unique=True),
)
def test_numbers_within_the_bound_stay_finite_to_the_end(tmp_path_factory, amounts, days, answers):
    table = put(put(numbered(pl.Float64), "amount", pl.Float64, *amounts), "date", pl.Float64, *days)
    quantities = put(OWNERS, "old", pl.Float64, *answers)
    data = loaded(tmp_path_factory.mktemp("own"), events=table, owners=quantities, kind="regression")
    all_finite(data)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        oldest = float(np.ptp(data.histories.time))
        trees = features(data.histories, data.train, data.encoding.sizes, length=99, oldest=oldest)
        assert not np.isinf(trees).any()
        outputs, zeros = np.array([[-1e3], [1e3]], np.float32), np.zeros(2, np.float32)
        objective = data.objective
        assert np.isfinite(objective.judge(objective.decode(zeros), objective.restored(outputs))[0])


@pytest.mark.parametrize(
    ("dtype", "value"),
    [
        (pl.Int64, 2**63 - 1),
        (pl.Int64, -(2**63)),
        (pl.UInt64, 2**64 - 1),
        (pl.Int128, 10**30),
        (pl.Decimal(38, 8), Decimal(10**29)),
        (pl.Float32, 9e29),
    ],
)
@pytest.mark.parametrize("column", ["amount", "date"])
def test_numbers_of_any_type_are_read(tmp_path, dtype, value, column):
    table = numbered(pl.Int64).with_columns(pl.col(column).abs().cast(dtype))
    all_finite(loaded(tmp_path, events=put(table, column, dtype, value)))


@pytest.mark.parametrize("unit", ["ms", "us", "ns"])
def test_dates_at_the_ends_of_the_calendar_are_read(tmp_path, unit):
    ends = [date(1, 1, 1), date(9999, 12, 31)] if unit != "ns" else [date(1678, 1, 1), date(2262, 1, 1)]
    dates = EVENTS.with_columns(pl.col("date").str.to_date())
    table = put(dates, "date", pl.Date, *ends)
    data = loaded(tmp_path, events=table.with_columns(pl.col("date").cast(pl.Datetime(unit))))
    all_finite(data)
    assert np.ptp(data.histories.time) == (ends[1] - ends[0]).days


@pytest.mark.parametrize("text", ["0000-01-01", "10000-01-01", "-0001-01-01", "9999-13-01"])
def test_text_beyond_the_calendar_is_shown_with_its_row(tmp_path, text):
    message = refusal(tmp_path, events=put(EVENTS, "date", pl.String, text), end="csv")
    assert "column 'date': 1 value not a date " in message
    assert message.endswith(f"row 1: {text!r}")


@pytest.mark.parametrize(
    ("dtype", "number"),
    [
        (pl.Date, 200_000_000),
        (pl.Date, -(2**31)),
        (pl.Date, 5_000_000),
        (pl.Datetime("ms"), 2**62),
        (pl.Datetime("us"), 2**62),
        (pl.Datetime("us", "UTC"), -(2**62)),
    ],
)
def test_a_moment_beyond_the_calendar_is_shown_with_its_row(tmp_path, dtype, number):
    whole = EVENTS.with_columns(pl.col("date").str.to_date().cast(dtype).to_physical())
    table = put(whole, "date", whole.schema["date"], number).with_columns(pl.col("date").cast(dtype))
    message = refusal(tmp_path, events=table)
    assert "of the years 1 to 9999" in message
    assert message.endswith(f"row 1: {number}")


@pytest.mark.parametrize("until", [math.nan, math.inf, 1e300, 10**400])
def test_a_moment_to_predict_from_must_be_finite(until):
    with pytest.raises(DataError, match="times are numbers of ±1e\\+30 at most, not "):
        moment(until, clock="number")


@pytest.mark.parametrize("until", [date.min, datetime.max])
def test_a_moment_to_predict_from_may_be_any_date(until):
    assert math.isfinite(moment(until, clock="calendar"))


def test_a_constant_far_from_zero_has_the_deviation_one(tmp_path):
    table = EVENTS.with_columns(amount=pl.lit(1e30))
    data = loaded(tmp_path, events=table)
    assert data.encoding.deviation[0] == 1.0
    (batch,) = data.batches("train", size=99, length=12, seed=0, epoch=0, shuffle=False)
    assert batch.inputs[1][..., 0].eq(0).all()


def test_small_differences_of_large_quantities_are_scored():
    objective = Regression(centre=1e9, scale=0.5)
    zeros, ones = np.zeros(2, np.float32), np.ones((2, 1), np.float32)
    assert objective.judge(objective.decode(zeros), objective.restored(ones))[0] == 0.5


def test_no_event_of_a_huge_time_makes_another_infinite():
    encoding = Encoding(
        entity="account",
        time="date",
        categorical=(),
        numeric=("amount",),
        clock="number",
        end="last event",
        vocabularies=(),
        mean=(0.0,) * 4,
        deviation=(1.0,) * 4,
    )
    table = put(numbered(pl.Float64), "date", pl.Float64, GREATEST, *([0.0] * 39), -GREATEST)
    _, inputs, _ = encoding.batch(table, 99)
    assert torch.isfinite(inputs.numeric).all()
