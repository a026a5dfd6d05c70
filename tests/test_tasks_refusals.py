"""Own data that cannot be used: one message that names the file, the column, the rows and the remedy."""

import sys

import polars as pl
import pytest
from tables import SCHEMA, changed, events, load_own, owners, written

from subquad.tasks import DataError, catalog, load

EVENTS, OWNERS = events(), owners()
MISFIT = "does not fit kind"
FITTING = "'auc' or 'accuracy' or 'macro_f1'"


def spoilt(table: pl.DataFrame, column: str, *values: object) -> pl.DataFrame:
    """The same as text, with other values in rows 3, 5, …"""
    texts = table[column].cast(pl.String).to_list()
    for place, value in enumerate(values):
        texts[2 + 2 * place] = value
    return table.with_columns(pl.Series(column, texts, dtype=pl.String))


def refusal(folder, *, events=EVENTS, owners=OWNERS, schema=SCHEMA) -> str:
    """What is said of these tables."""
    path = written(folder, events=events, owners=owners, schema=schema)
    with pytest.raises(DataError) as caught:
        load_own(path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("values", "count", "rows"),
    [
        (["many"], "1 value", "row 3: 'many'"),
        ([None, "NaN", "inf", "-inf"], "4 values", "row 3: None, row 5: 'NaN', row 7: 'inf'"),
    ],
    ids=["not a number", "null, NaN, infinite"],
)
def test_an_amount_that_is_no_number_is_shown_with_its_row(tmp_path, values, count, rows):
    message = refusal(tmp_path, events=spoilt(EVENTS, "amount", *values))
    assert message == (
        f"{tmp_path / 'events.csv'}: column 'amount': {count} missing, not a number or beyond ±1e+30; "
        f"mend or leave out these rows: {rows}"
    )


@pytest.mark.parametrize("amount", [None, float("nan"), float("inf")])
def test_an_amount_missing_from_parquet_is_shown_with_its_row(tmp_path, amount):
    amounts = EVENTS["amount"].to_list()
    amounts[41] = amount
    table = EVENTS.with_columns(pl.Series("amount", amounts))
    message = refusal(tmp_path, events=table, schema=changed("events", path="events.parquet"))
    assert message.startswith(f"{tmp_path / 'events.parquet'}: column 'amount': 1 value missing, ")
    assert message.endswith(f"row 42: {amount}")


def test_text_where_numbers_belong_is_refused(tmp_path):
    table = EVENTS.with_columns(amount=pl.col("amount") > 0)
    message = refusal(tmp_path, events=table, schema=changed("events", path="events.parquet"))
    assert message.endswith("events.parquet: column 'amount' holds Boolean, not numbers")


@pytest.mark.parametrize("first", ["2020-01-01", "2020-01-01 10:00:00", "2020-01-01T10:00:00Z", "12.5"])
@pytest.mark.parametrize("stray", ["31.12.2020", "2020-02-30", "20-01-05", "yesterday", "", None])
def test_a_stray_date_is_shown_with_its_row(tmp_path, first, stray):
    dates = [first] * len(EVENTS)
    dates[6] = dates[9] = stray
    message = refusal(tmp_path, events=EVENTS.with_columns(pl.Series("date", dates)))
    assert "column 'date': 2 values not a " in message
    assert message.endswith(f"row 7: {stray!r}, row 10: {stray!r}")


def test_zones_in_some_rows_are_refused(tmp_path):
    dates = ["2020-01-01 10:00:00+01:00"] * len(EVENTS)
    dates[4] = "2020-01-01 10:00:00"
    message = refusal(tmp_path, events=EVENTS.with_columns(pl.Series("date", dates)))
    assert "with a zone in every row or in none: row 5: '2020-01-01 10:00:00'" in message


def test_dates_written_as_numbers_are_refused(tmp_path):
    table = EVENTS.with_columns(pl.col("date").str.replace_all("-", ""))
    message = refusal(tmp_path, events=table)
    assert message.endswith(
        "column 'date': every value is a date written as a number; write it as 2017-01-31"
    )


@pytest.mark.parametrize("gap", [None, ""])
def test_an_event_of_nobody_is_shown_with_its_row(tmp_path, gap):
    message = refusal(tmp_path, events=spoilt(EVENTS, "account", gap))
    assert "column 'account': 1 value without an entity" in message
    assert message.endswith(f"row 3: {gap!r}")


@pytest.mark.parametrize(
    ("section", "key", "file"),
    [
        ("events", "entity", "events.csv"),
        ("events", "time", "events.csv"),
        ("target", "entity", "owners.csv"),
        ("target", "column", "owners.csv"),
    ],
)
def test_a_missing_column_is_named_with_the_nearest(tmp_path, section, key, file):
    known = SCHEMA[section][key]
    message = refusal(tmp_path, schema=changed(section, **{key: known + "x"}))
    assert message == f"{tmp_path / file}: no column {known + 'x'!r}; did you mean {known!r}?"


@pytest.mark.parametrize("key", ["categorical", "numeric"])
def test_a_missing_input_is_named_with_all_that_there_are(tmp_path, key):
    message = refusal(tmp_path, schema=changed("events", **{key: ["zzz"]}))
    assert message.endswith("no column 'zzz'; there are 'account', 'amount', 'date', 'type'")


@pytest.mark.parametrize("section", ["events", "target"])
def test_a_missing_file_is_named(tmp_path, section):
    path = written(tmp_path, events=EVENTS, owners=OWNERS)
    file = tmp_path / str(SCHEMA[section]["path"])
    file.unlink()
    with pytest.raises(DataError) as caught:
        load_own(path)
    assert str(caught.value) == f"{file}: no such file"


@pytest.mark.parametrize("section", ["events", "target"])
@pytest.mark.parametrize("content", ["", "header"])
def test_an_empty_file_is_named(tmp_path, section, content):
    path = written(tmp_path, events=EVENTS, owners=OWNERS)
    file = tmp_path / str(SCHEMA[section]["path"])
    file.write_text("" if not content else file.read_text().splitlines()[0] + "\n")
    with pytest.raises(DataError) as caught:
        load_own(path)
    assert str(caught.value).startswith(f"{file}: ")
    assert "empty" in str(caught.value)


def test_a_file_of_another_kind_is_named(tmp_path):
    path = written(tmp_path, events=EVENTS, owners=OWNERS, schema=changed("events", path="events.xlsx"))
    with pytest.raises(DataError, match=r"cannot read '\.xlsx'; give a \.csv or \.parquet file"):
        load_own(path)


def test_a_file_that_is_not_what_its_name_says_is_named(tmp_path):
    path = written(tmp_path, events=EVENTS, owners=OWNERS, schema=changed("events", path="events.parquet"))
    (tmp_path / "events.parquet").write_text("not parquet at all")
    with pytest.raises(DataError, match=r"events\.parquet: cannot be read: parquet: "):
        load_own(path)


def test_entities_without_events_are_shown(tmp_path):
    message = refusal(tmp_path, events=EVENTS.filter(~pl.col("account").is_in(["a003", "a007"])))
    assert message == (
        f"{tmp_path / 'owners.csv'}: column 'account': 2 of 40 entities have no events, first: "
        "row 4: 'a003', row 8: 'a007'; the events have entities like 'a000'"
    )


def test_answers_that_contradict_each_other_are_shown(tmp_path):
    other = OWNERS.filter(pl.col("account") == "a001").with_columns(old=1 - pl.col("old"))
    message = refusal(tmp_path, owners=pl.concat([OWNERS, other]))
    assert message == (
        f"{tmp_path / 'owners.csv'}: column 'old': 1 of 40 entities have different values, first: "
        "entity 'a001', row 2: '1', row 41: '0'; keep one for each"
    )


def test_answers_that_repeat_themselves_are_taken(tmp_path):
    data = load_own(written(tmp_path, events=EVENTS, owners=pl.concat([OWNERS, OWNERS])))
    assert sum(len(data.examples(split)) for split in ("train", "validation", "test")) == 40


@pytest.mark.parametrize("gap", [None, ""])
def test_a_missing_answer_is_shown_with_its_row(tmp_path, gap):
    message = refusal(tmp_path, owners=spoilt(OWNERS, "old", gap))
    assert "column 'old': 1 value missing" in message
    assert message.endswith(f"row 3: {gap!r}")


def test_a_quantity_that_is_no_number_is_shown_with_its_row(tmp_path):
    table = spoilt(OWNERS, "old", "many", "inf")
    message = refusal(tmp_path, owners=table, schema=changed("target", kind="regression"))
    assert message.endswith("row 3: 'many', row 5: 'inf'")


@pytest.mark.parametrize("kind", ["binary", "multiclass", "regression"])
def test_one_answer_for_all_is_refused(tmp_path, kind):
    table = OWNERS.with_columns(old=7)
    message = refusal(tmp_path, owners=table, schema=changed("target", kind=kind))
    assert "column 'old': every entity has the value " in message


def test_more_than_two_classes_are_not_binary(tmp_path):
    message = refusal(tmp_path, owners=OWNERS.with_columns(old=pl.int_range(40) % 4))
    assert "4 values ('0', '1', '2', …), and kind 'binary' takes two" in message


def test_a_class_must_be_in_every_split(tmp_path):
    table = OWNERS.with_columns(old=(pl.col("account") == "a000").cast(pl.Int8))
    message = refusal(tmp_path, owners=table)
    assert "none of the 1 entities with the value '1' falls in " in message
    assert message.endswith("give more of them, or merge the value with another")


def test_too_few_entities_are_refused(tmp_path):
    message = refusal(tmp_path, events=events(accounts=2), owners=owners(accounts=2))
    assert "none of the 2 entities falls in " in message


def test_the_answer_cannot_be_an_input(tmp_path):
    schema = changed("target", path="events.csv", column="type")
    assert refusal(tmp_path, schema=schema).endswith("'type' is also an input: take it out of [events]")


@pytest.mark.parametrize(
    ("section", "keys", "said"),
    [
        ("events", {"numric": []}, "unknown key 'numric' in [events]; did you mean 'numeric'?"),
        ("events", {"time": None}, "[events] lacks the key 'time'"),
        ("target", {"kind": None}, "[target] lacks the key 'kind'"),
        ("events", {"time": 3}, "[events] time must be a text, not 3"),
        ("events", {"numeric": "amount"}, "[events] numeric must be a list of column names, not 'amount'"),
        ("events", {"numeric": ["amount", "amount"]}, "[events] numeric names 'amount' twice"),
        ("target", {"kind": "binarry"}, "unknown kind 'binarry'; did you mean 'binary'?"),
        ("target", {"metric": "acuracy"}, "unknown metric 'acuracy'; did you mean 'accuracy'?"),
        (
            "target",
            {"metric": "mae"},
            f"metric 'mae' {MISFIT} 'binary': use 'auc' or 'accuracy' or 'macro_f1'",
        ),
        ("target", {"kind": "regression", "metric": "auc"}, f"metric 'auc' {MISFIT} 'regression': use 'mae'"),
    ],
)
def test_a_schema_that_says_what_cannot_be_is_refused(tmp_path, section, keys, said):
    message = refusal(tmp_path, schema=changed(section, **keys))
    assert message == f"{tmp_path / 'schema.toml'}: {said}"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[events\n", "not TOML: "),
        (f"a = {'[' * 5000}", "not TOML: it has too many levels"),
        ("[event]\n", "unknown section [event]; did you mean 'events'?"),
        ("[events]\n", "[events] lacks the key 'path'"),
        ("", "there is no section [events]"),
        ("events = 3\n", "there is no section [events]"),
    ],
)
def test_a_schema_that_cannot_be_read_is_refused(tmp_path, text, said):
    path = tmp_path / "schema.toml"
    path.write_text(text)
    with pytest.raises(DataError) as caught:
        load_own(path)
    assert str(caught.value).startswith(f"{path}: {said}")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"name": "transaction"}, "unknown task 'transaction'; did you mean 'transactions'?"),
        (
            {"name": "custom"},
            "the task 'custom' needs to know your tables: give a schema file",
        ),
        (
            {"name": "transactions", "schema": "s.toml"},
            "the task 'transactions' has no option 'schema'",
        ),
    ],
)
def test_a_task_that_cannot_be_is_refused(tmp_path, arguments, said):
    if "schema" in arguments:
        arguments = {**arguments, "schema": str(tmp_path / arguments["schema"])}
    with pytest.raises(DataError) as caught:
        load(**arguments)
    assert str(caught.value).startswith(said)


def test_a_missing_library_is_named_with_its_remedy(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "polars", None)
    monkeypatch.delitem(sys.modules, "subquad.tasks.custom")
    catalog.cache_clear()
    with pytest.raises(DataError, match=r'needs polars, .*: pip install "subquad\[compare\]"'):
        load("custom", schema=str(tmp_path / "schema.toml"))
