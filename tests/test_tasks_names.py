"""Names mean one thing: a file, a column and an entity are each the one that is called so."""

import math
from decimal import Decimal

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tables import changed, events, load_own, owners, toml, written
from test_tasks_own import same

from subquad.tasks import DataError
from subquad.tasks.encoding import Encoding
from subquad.tasks.source import open_table

EVENTS, OWNERS = events(), owners()
NUMBERS = {f"a{number:03}": number for number in range(40)}
WORDS = ["NaN", "nan", "-nan", "inf", "-Inf", "+inf", "Infinity"]
FILES = ["tar[g]et", "*", "?arget", "[!x]arget", "~", "target{1,2}", "a=b", "é "]
COLUMNS = ["*", "^.*$", "^a", "", "0", "1", "row", "entity", "a,b", 'a"b', "a\nb", "a;b", " ", "(?i)x"]


def refusal(folder, *, events=EVENTS, owners=OWNERS, end: str = "csv") -> str:
    """What is said of these tables, as CSV or Parquet."""
    schema = changed("events", path=f"events.{end}")
    schema["target"]["path"] = f"owners.{end}"
    with pytest.raises(DataError) as caught:
        load_own(written(folder, events=events, owners=owners, schema=schema))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def numbered(table: pl.DataFrame, kind) -> pl.DataFrame:
    """The same with numbers for accounts."""
    return table.with_columns(pl.col("account").replace_strict(NUMBERS, return_dtype=kind))


def put(table: pl.DataFrame, column: str, *values: object) -> pl.DataFrame:
    """The same with these values in rows 3, 5, … of a column."""
    given = table[column].to_list()
    for place, value in enumerate(values):
        given[2 + 2 * place] = value
    return table.with_columns(pl.Series(column, given, dtype=table.schema[column]))


def with_columns(*names: str) -> str:
    """The events as CSV with more columns under these names, which hold x."""
    first, *lines = EVENTS.write_csv().splitlines()
    return "\n".join([",".join([first, *names]), *(line + ",x" * len(names) for line in lines)])


def encoded(entity: str, time: str, *, categorical=(), numeric=()) -> Encoding:
    return Encoding(
        entity=entity,
        time=time,
        categorical=categorical,
        numeric=numeric,
        clock="calendar",
        end="last event",
        vocabularies=(("food", "fun"),) * len(categorical),
    )


@pytest.mark.parametrize("end", ["csv", "parquet"])
@pytest.mark.parametrize("name", FILES)
def test_a_file_is_the_one_of_that_name(tmp_path, name, end):
    (tmp_path / "plain").mkdir()
    decoys = pl.concat([OWNERS.with_columns(old=1 - pl.col("old"))] * 2)
    for decoy in ("target", "xarget", "target1"):
        decoys.write_csv(tmp_path / f"{decoy}.csv")
        decoys.write_parquet(tmp_path / f"{decoy}.parquet")
    schema = changed("target", path=f"{name}.{end}")
    found = load_own(written(tmp_path, events=EVENTS, owners=OWNERS, schema=schema))
    plain = load_own(written(tmp_path / "plain", events=EVENTS, owners=OWNERS))
    same(found, plain)
    if end == "csv":
        assert found.fingerprint == plain.fingerprint


@pytest.mark.parametrize("end", ["csv", "parquet"])
@pytest.mark.parametrize("name", ["dir[1]", "a=b", "*"])
def test_a_folder_is_the_one_of_that_name(tmp_path, name, end):
    for folder in ("plain", name):
        (tmp_path / folder).mkdir()
    schema = changed("events", path=f"events.{end}")
    found, plain = (
        load_own(written(tmp_path / folder, events=EVENTS, owners=OWNERS, schema=schema))
        for folder in (name, "plain")
    )
    same(found, plain)


@settings(max_examples=25, deadline=None)
@given(
    names=st.lists(st.sampled_from(COLUMNS), min_size=4, max_size=4, unique_by=str.strip),
    end=st.sampled_from(["csv", "parquet"]),
)
def test_a_column_is_the_one_of_that_name(tmp_path_factory, names, end):
    account, date, type_, amount = names
    file = tmp_path_factory.mktemp("names") / f"events.{end}"
    table = EVENTS.rename(dict(zip(EVENTS.columns, names, strict=True)))
    table.write_csv(file) if end == "csv" else table.write_parquet(file)
    encoding = encoded(account, date, categorical=(type_,), numeric=(amount,))
    _, expected = encoded("account", "date", categorical=("type",), numeric=("amount",)).encode(EVENTS)
    for source in (file, table, table.lazy()):
        entities, histories = encoding.encode(source)
        assert entities.name == account
        for field in ("entities", "time", "categorical", "logs"):
            np.testing.assert_array_equal(getattr(histories, field), getattr(expected, field))


@pytest.mark.parametrize("other", ["type", "type ", " type"])
def test_a_column_that_stands_twice_is_refused(tmp_path, other):
    path = written(tmp_path, events=EVENTS, owners=OWNERS)
    (tmp_path / "events.csv").write_text(with_columns(other))
    with pytest.raises(DataError, match=r"columns 3 and 5 are called 'type'.*: rename all but one"):
        load_own(path)


def test_a_column_that_stands_twice_and_is_not_asked_for_does_not_matter(tmp_path):
    (tmp_path / "plain").mkdir()
    path = written(tmp_path, events=EVENTS, owners=OWNERS)
    (tmp_path / "events.csv").write_text(with_columns("", "", "x", "x"))
    same(load_own(path), load_own(written(tmp_path / "plain", events=EVENTS, owners=OWNERS)))


def test_a_column_that_stands_twice_in_parquet_is_refused(tmp_path):
    arrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    columns = EVENTS.to_arrow().columns
    table = arrow.Table.from_arrays([*columns, columns[2]], names=[*EVENTS.columns, "type"])
    path = written(tmp_path, events=EVENTS, owners=OWNERS, schema=changed("events", path="events.parquet"))
    parquet.write_table(table, tmp_path / "events.parquet")
    with pytest.raises(DataError, match=r"events\.parquet: cannot be read: .*'type'"):
        load_own(path)


@pytest.mark.parametrize("kind", [pl.Float32, pl.Float64])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("part", ["events", "owners"])
def test_a_number_that_is_none_is_no_entity(tmp_path, kind, value, part):
    tables = {"events": numbered(EVENTS, kind), "owners": numbered(OWNERS, kind)}
    tables[part] = put(tables[part], "account", value, value)
    message = refusal(tmp_path, events=tables["events"], owners=tables["owners"], end="parquet")
    assert "column 'account': 2 values " in message
    assert message.endswith(f"fill in or leave out these rows: row 3: {value!r}, row 5: {value!r}")


@pytest.mark.parametrize("word", [*WORDS, "NULL", "None", "NA", "n/a", "<NA>"])
@pytest.mark.parametrize("part", ["events", "owners"])
def test_a_word_for_nothing_among_numbers_is_no_entity(tmp_path, word, part):
    tables = {"events": numbered(EVENTS, pl.String), "owners": numbered(OWNERS, pl.String)}
    tables[part] = put(tables[part], "account", f" {word}", word)
    message = refusal(tmp_path, events=tables["events"], owners=tables["owners"])
    assert "column 'account': 2 values " in message
    assert message.endswith(f"row 3: ' {word}', row 5: {word!r}")


@pytest.mark.parametrize(("kind", "value"), [(pl.Float64, math.nan), (pl.String, "nan")])
def test_a_number_that_is_none_is_no_class(tmp_path, kind, value):
    answers = OWNERS.with_columns(pl.col("old").cast(pl.Float64).cast(kind))
    message = refusal(tmp_path, owners=put(answers, "old", value), end="parquet")
    assert "column 'old': 1 value missing; fill in or leave out these rows" in message
    assert message.endswith(f": row 3: {value!r}")


@pytest.mark.parametrize("kind", [pl.Float64, pl.String, pl.Categorical])
@pytest.mark.parametrize("word", ["nan", "inf"])
def test_a_number_that_is_none_is_no_category(tmp_path, word, kind):
    codes = EVENTS.with_columns(type=(pl.int_range(len(EVENTS)) % 4).cast(pl.String))
    codes = put(codes, "type", None, word).with_columns(pl.col("type").cast(kind))
    message = refusal(tmp_path, events=codes, end="parquet")
    assert "column 'type': 1 value not finite, where all others are numbers; leave these" in message
    assert message.endswith(f"row 5: {float(word) if kind == pl.Float64 else word!r}")


@pytest.mark.parametrize("word", WORDS)
def test_a_name_among_names_may_be_any_word(tmp_path, word):
    tables = [table.with_columns(pl.col("account").replace("a000", word)) for table in (EVENTS, OWNERS)]
    data = load_own(written(tmp_path, events=tables[0], owners=tables[1]))
    assert word in data.histories.entities


@pytest.mark.parametrize(
    ("kind", "value"),
    [(pl.Float32, 2.0**24), (pl.Float64, 2.0**53), (pl.Float64, 1e20), (pl.Float64, -1e300)],
)
def test_a_float_that_stands_for_several_whole_numbers_is_no_name(tmp_path, kind, value):
    tables = [put(numbered(table, kind), "account", value) for table in (EVENTS, OWNERS)]
    message = refusal(tmp_path, events=tables[0], owners=tables[1], end="parquet")
    assert f"{kind} merges whole numbers; write integers or text: row 3: {value!r}" in message


@pytest.mark.parametrize("kind", [pl.Int64, pl.UInt64, pl.Int128, pl.Decimal(38, 0), pl.String])
def test_whole_numbers_of_any_size_are_told_apart(tmp_path, kind):
    names = {name: 2**53 + number for name, number in NUMBERS.items()}
    tables = [
        table.with_columns(pl.col("account").replace_strict(names, return_dtype=pl.Int64).cast(kind))
        for table in (EVENTS, OWNERS)
    ]
    schema = changed("events", path="events.parquet")
    schema["target"] |= {"path": "owners.parquet"}
    data = load_own(written(tmp_path, events=tables[0], owners=tables[1], schema=schema))
    assert data.histories.entities == tuple(str(number) for number in sorted(names.values()))


def test_zero_has_one_name():
    encoding = encoded("account", "date")
    floats = EVENTS.with_columns(account=pl.Series([0.0, -0.0] * 240))
    exact = EVENTS.with_columns(account=pl.Series([Decimal("0.00")] * 480))
    for table in (floats, exact):
        entities, histories = encoding.encode(table)
        assert entities.to_list() == [0]
        assert histories.entities == ("0",)


def test_what_is_no_file_is_said(tmp_path):
    schema = tmp_path / "schema.toml"
    written(tmp_path, events=EVENTS, owners=OWNERS)
    schema.write_text(toml(changed("events", path=".")))
    with pytest.raises(DataError, match="not a file"):
        load_own(schema)


def test_a_file_that_vanishes_is_said(tmp_path):
    written(tmp_path, events=EVENTS, owners=OWNERS)
    with open_table(tmp_path / "events.csv", ("account",)) as source:
        (tmp_path / "events.csv").unlink()
        with pytest.raises(DataError, match=r"events\.csv: cannot be read: "):
            source.refuse_empty()


@pytest.mark.parametrize("end", ["csv", "parquet"])
def test_loading_asks_no_oftener_for_more_columns(tmp_path, monkeypatch, end):
    """Types once, and as many passes over the file, however many columns there are."""
    asked = {"schemas": 0, "passes": 0}
    schema, collect = pl.LazyFrame.collect_schema, pl.LazyFrame.collect

    def counted_schema(self):
        asked["schemas"] += 1
        return schema(self)

    def counted_collect(self, *arguments, **options):
        asked["passes"] += "SCAN" in self.explain()
        return collect(self, *arguments, **options)

    monkeypatch.setattr(pl.LazyFrame, "collect_schema", counted_schema)
    monkeypatch.setattr(pl.LazyFrame, "collect", counted_collect)
    taken = []
    for width in (2, 12):
        words = {f"k{place}": pl.col("type") for place in range(width)}
        amounts = {f"n{place}": pl.col("amount") for place in range(width)}
        keys = {"path": f"events.{end}", "categorical": list(words), "numeric": list(amounts)}
        table = EVENTS.with_columns(**words, **amounts)
        asked.update(schemas=0, passes=0)
        load_own(written(tmp_path, events=table, owners=OWNERS, schema=changed("events", **keys)))
        taken.append(dict(asked))
    assert taken[0] == taken[1]
    assert taken[0]["passes"] > 0
