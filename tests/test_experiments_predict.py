"""A loaded model takes tables as they come and answers in their terms."""

from dataclasses import replace

import numpy as np
import polars as pl
import pytest
from experiments_sample import quick
from own_sample import write
from polars.testing import assert_frame_equal

import subquad
from subquad import tasks
from subquad.experiments.model import build_model
from subquad.experiments.predictor import export
from subquad.tasks import DataError
from subquad.tasks.source import rows_of


def loaded(folder, *, column, kind):
    """A model as it begins, and the events that its task was made of."""
    schema = write(folder, column=column, kind=kind)
    data = tasks.load("custom", schema=str(schema))
    spec = quick(schema, data)
    export(build_model(spec, data), data, spec, folder / "model")
    return subquad.load_model(folder / "model"), pl.read_csv(folder / "events.csv")


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    return loaded(tmp_path_factory.mktemp("own"), column="over_55", kind="binary")


@pytest.fixture
def model(both):
    return both[0]


@pytest.fixture
def events(both):
    return both[1]


def numbered(events: pl.DataFrame, kind) -> pl.DataFrame:
    """The same with numbers for accounts."""
    return events.with_columns(pl.col("account").str.strip_prefix("a").cast(kind))


def as_file(events: pl.DataFrame, folder, name: str):
    path = folder / name
    events.write_csv(path) if path.suffix == ".csv" else events.write_parquet(path)
    return path


FORMS = {
    "a lazy frame": lambda events, folder: events.lazy(),
    "a pandas frame": lambda events, folder: events.to_pandas(),
    "an Arrow table": lambda events, folder: events.to_arrow(),
    "a CSV": lambda events, folder: as_file(events, folder, "new.csv"),
    "the name of a Parquet file": lambda events, folder: str(as_file(events, folder, "new.parquet")),
    "more columns": lambda events, folder: events.with_columns(pl.lit([1]).alias("^.*$")),
    "another order": lambda events, folder: events.sort("date").select(reversed(events.columns)),
}


@pytest.mark.parametrize("form", FORMS)
def test_the_same_events_get_the_same_answers_in_any_form(model, events, tmp_path, form):
    if form in ("a pandas frame", "an Arrow table"):
        pytest.importorskip("pyarrow")
    if form == "a pandas frame":
        pytest.importorskip("pandas")
    events = events.unique(["account", "date"], maintain_order=True)  # those of one day keep their order
    assert_frame_equal(model.predict(FORMS[form](events, tmp_path)), model.predict(events))


@pytest.mark.parametrize("kind", [pl.Int64, pl.UInt8, pl.Float64, pl.String, pl.Categorical])
def test_answers_join_back_to_what_was_given(model, events, kind):
    events = numbered(events, kind)
    answers = model.predict(events)
    assert answers.schema["account"] == events.schema["account"]
    assert len(events.join(answers, on="account")) == len(events)
    assert len(answers) == events["account"].n_unique()


def test_numbers_of_entities_come_in_order_with_their_own_answers(model, events):
    answers = model.predict(numbered(events, pl.Int64))
    assert answers["account"].to_list() == list(range(60))
    alone = model.predict(numbered(events, pl.Int64).filter(pl.col("account") == 10))
    assert_frame_equal(alone, answers.filter(pl.col("account") == 10), abs_tol=1e-5)


def test_an_answer_names_the_class_that_a_probability_is_for(model, events):
    answers = model.predict(events)
    chances = answers.select(f"probability of {name}" for name in model.objective.classes).to_numpy()
    np.testing.assert_allclose(chances.sum(1), 1)
    assert answers["class"].to_list() == [model.objective.classes[place] for place in chances.argmax(1)]


def test_an_entity_column_keeps_its_name_beside_answers_of_the_same(model, events):
    model = replace(model, encoding=replace(model.encoding, entity="class"))
    answers = model.predict(events.rename({"account": "class"}))
    assert answers["class"].to_list() == sorted(events["account"].unique())
    assert answers.columns[1] == "predicted class"


def test_a_category_that_training_had_not_is_taken(model, events):
    assert len(model.predict(events.with_columns(type=pl.lit("brand-new")))) == 60


def test_a_decimal_comma_is_one_in_new_files_too(model, events, tmp_path):
    model = replace(model, encoding=replace(model.encoding, decimal=","))
    commas = events.with_columns(pl.col("amount").cast(pl.String).str.replace(".", ",", literal=True))
    commas.write_csv(tmp_path / "new.csv", separator=";")
    assert_frame_equal(model.predict(tmp_path / "new.csv"), model.predict(events))


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (lambda events: events.drop("amount"), "no column 'amount'; did you mean 'account'?"),
        (lambda events: events.lazy().drop("amount"), "no column 'amount'"),
        (lambda events: events.head(0), "the given frame: empty: there are no rows"),
        (lambda events: events.head(0).lazy(), "the given frame: empty: there are no rows"),
        (lambda events: "nowhere.csv", "nowhere.csv: no such file"),
        (lambda events: numbered(events, pl.Float64).with_columns(account=float("nan")), "values without an"),
        (
            lambda events: events.with_columns(pl.col("type").alias("type ")),
            "columns 3 and 5 are called 'type', 'type ': rename all but one",
        ),
    ],
    ids=["no column", "no column, lazy", "no rows", "no rows, lazy", "no file", "nan", "twice"],
)
def test_events_that_cannot_be_read_are_refused(model, events, made, said):
    with pytest.raises(DataError) as caught:
        model.predict(made(events))
    assert said in str(caught.value)


def test_a_moment_is_refused_where_training_had_none(model, events):
    with pytest.raises(DataError, match="leave until= out"):
        model.predict(events, until=10.0)


@pytest.mark.parametrize("table", [{"account": [1]}, [1, 2], None, 3.0, np.ones(3)])
def test_what_is_no_table_is_refused_with_what_is_one(table):
    with pytest.raises(DataError) as caught:
        rows_of(table)
    kind = f"{type(table).__module__}.{type(table).__qualname__}"
    assert str(caught.value).startswith(f"{kind} is not a table: give a Polars or pandas frame, ")
