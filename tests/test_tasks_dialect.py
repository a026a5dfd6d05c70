"""CSV as it comes: read where it says how, refused with the cure where it does not."""

import codecs
from dataclasses import replace
from pathlib import Path

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tables import changed, events, load_own, owners, written
from test_tasks_own import same

from subquad.tasks import DataError, dialect, source

EVENTS = events()
PLAIN = EVENTS.write_csv()


def loaded(folder: Path, raw: bytes, **keys: object):
    """The task with its events written so, and with keys of [events] so."""
    path = written(folder, events=EVENTS, owners=owners(), schema=changed("events", **keys))
    (folder / "events.csv").write_bytes(raw)
    return load_own(path)


def refusal(folder: Path, raw: bytes, **keys: object) -> str:
    with pytest.raises(DataError) as caught:
        loaded(folder, raw, **keys)
    message = str(caught.value)
    assert message.startswith(f"{folder / 'events.csv'}: ")
    assert "\n" not in message
    return message


def again(line: str) -> bytes:
    """The plain file with another line after the second row, and at the end."""
    lines = PLAIN.splitlines(keepends=True)
    return "".join([*lines[:3], line, *lines[3:], line]).encode()


WAYS = {
    "semicolons": PLAIN.replace(",", ";").encode(),
    "tabs": PLAIN.replace(",", "\t").encode(),
    "bars": PLAIN.replace(",", "|").encode(),
    "CRLF": PLAIN.replace("\n", "\r\n").encode(),
    "lone CR": PLAIN.replace("\n", "\r").encode(),
    "no last line end": PLAIN.rstrip("\n").encode(),
    "a mark of UTF-8": codecs.BOM_UTF8 + PLAIN.encode(),
    "UTF-16, little": codecs.BOM_UTF16_LE + PLAIN.encode("utf-16-le"),
    "UTF-16, big": codecs.BOM_UTF16_BE + PLAIN.encode("utf-16-be"),
    "UTF-32": PLAIN.encode("utf-32"),
    "UTF-16, semicolons, CRLF": PLAIN.replace(",", ";").replace("\n", "\r\n").encode("utf-16"),
    "quotes": EVENTS.write_csv(quote_style="always").encode(),
    "empty lines": again("\n"),
    "empty lines, CRLF": again("\n").replace(b"\n", b"\r\n"),
    "empty lines, lone CR": again("\n").replace(b"\n", b"\r"),
    "empty rows": again(",,,\n"),
    "empty lines before the header": b"\n\r\n" + PLAIN.encode(),
}


@pytest.mark.parametrize("way", WAYS)
def test_the_same_table_written_in_any_way_is_the_same(tmp_path, way):
    (tmp_path / "plain").mkdir()
    same(loaded(tmp_path, WAYS[way]), loaded(tmp_path / "plain", PLAIN.encode()))


@pytest.mark.parametrize("encoding", ["cp1252", "latin-1", "utf-16-le", "UTF-8"])
def test_an_encoding_is_read_where_the_schema_names_it(tmp_path, encoding):
    data = loaded(tmp_path, PLAIN.replace("food", "café").encode(encoding), encoding=encoding)
    assert "café" in data.encoding.vocabularies[0]


def test_a_decimal_comma_is_read_where_the_schema_says_so(tmp_path):
    (tmp_path / "plain").mkdir()
    commas = PLAIN.replace(",", ";").replace(".", ",").encode()
    data, points = loaded(tmp_path, commas, decimal=","), loaded(tmp_path / "plain", PLAIN.encode())
    assert data.encoding.decimal == ","
    same(replace(data, encoding=replace(data.encoding, decimal=".")), points)


def test_a_quotation_mark_within_a_line_is_part_of_its_text(tmp_path):
    data = loaded(tmp_path, PLAIN.replace("food", 'the "best" food').encode())
    assert 'the "best" food' in data.encoding.vocabularies[0]


def test_text_may_hold_separators_quotes_and_line_ends(tmp_path):
    odd = 'one, "two";\n\nthree'
    table = EVENTS.with_columns(type=pl.when(pl.col("type") == "fun").then(pl.lit(odd)).otherwise("type"))
    data = loaded(tmp_path, table.write_csv().encode())
    assert odd in data.encoding.vocabularies[0]


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        (
            PLAIN.replace("food", "café").encode("cp1252"),
            "byte 0xe9 is not UTF-8: save the file as",
        ),
        (PLAIN.replace("type", "typé").encode("cp1252"), ": row 0: byte 0xe9 is not UTF-8"),
        (PLAIN.encode("utf-16-le"), 'write encoding = "utf-16-le" in the schema'),
        (codecs.BOM_UTF16_LE + b"a\x00b", "not utf-16: "),
        (again("a001,2020-01-01,food\n"), "the header has 4 fields, and row 3 has 3, row 482 has 3; mend"),
        (
            again("a001,2020-01-01,food,1,2\n"),
            "the header has 4 fields, and row 3 has 5, row 482 has 5",
        ),
        (again("   \n"), "the header has 4 fields, and row 3 has 1"),
        (again('a001,2020-01-01,"food,1\n'), ": row 3: a quotation mark is left open"),
        (again('a001,2020-01-01,5" food,1\n'), ": row 3: a quotation mark is left open"),
        (again('a001,2020-01-01,"food" it was,1\n'), "or stands inside a field: where it is part of"),
        (PLAIN.replace("rent", "re\0nt", 1).encode(), ": line 2 holds a zero byte: take it out, or"),
        (PLAIN.encode() + b'a001,2020-01-01,"food,1\n', ": row 481: a quotation mark is left open"),
        (PLAIN.replace(".", ",").encode(), "the header has 4 fields, and row 1 has 5"),
        (PLAIN.replace(".", ":").replace(",", ";").replace(":", ",").encode(), 'write decimal = "," in the'),
        (b"account,date,type,amount,;account;date;type;amount;\n", "may be separated by ',' or ';'"),
        (PLAIN.replace("\n", "\r", 1).encode(), r"lines end in different ways, the first in a lone '\r'"),
        (b"", "empty: there are no rows"),
        (b"\n\n\n", "empty: there are no rows"),
        (codecs.BOM_UTF8, "empty: there are no rows"),
        (codecs.BOM_UTF16_LE, "empty: there are no rows"),
        (b"account,date,type,amount", "empty: there are no rows"),
        (b"account,date,type,amount\n\n,,,\n", "empty: there are no rows"),
    ],
)
def test_a_csv_that_cannot_be_known_is_refused_with_the_cure(tmp_path, raw, said):
    assert said in refusal(tmp_path, raw)


@pytest.mark.parametrize(
    ("encoding", "mark", "said"),
    [
        ("utf-17", b"", "unknown encoding 'utf-17'; there are 'cp1252', "),
        ("hex", b"", "unknown encoding 'hex'"),
        ("ascii", b"", "not ascii: "),
        ("cp1252", codecs.BOM_UTF8, "begins with the mark of utf-8: leave encoding = 'cp1252' out"),
    ],
)
def test_an_encoding_that_a_file_is_not_in_is_refused(tmp_path, encoding, mark, said):
    raw = mark + PLAIN.replace("food", "café").encode()
    assert said in refusal(tmp_path, raw, encoding=encoding)


def test_thousands_beside_a_decimal_comma_are_shown(tmp_path):
    commas = PLAIN.replace(",", ";").replace(".", ",") + "a001;2020-01-01;food;1.234,50\n"
    assert refusal(tmp_path, commas.encode(), decimal=",").endswith("row 481: '1.234,50'")


@pytest.mark.parametrize(("key", "value"), [("decimal", ";"), ("encoding", 3)])
def test_a_schema_takes_only_what_can_be(tmp_path, key, value):
    with pytest.raises(DataError, match=rf"\[events\] {key} must be "):
        loaded(tmp_path, PLAIN.encode(), **{key: value})


def test_parquet_needs_no_encoding(tmp_path):
    schema = changed("events", path="events.parquet", encoding="cp1252")
    path = written(tmp_path, events=EVENTS, owners=owners(), schema=schema)
    with pytest.raises(DataError, match="Parquet knows its encoding: leave encoding = 'cp1252' out"):
        load_own(path)


def test_a_copy_in_utf_8_is_gone_afterwards(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    file = tmp_path / "table.csv"
    file.write_bytes("a,b\n1,2\n".encode("utf-16"))
    with source.open_table(file, ("a", "b")) as table:
        assert len(list(tmp_path.iterdir())) == 2
        assert table.raw.collect().rows() == [(1, "1", "2")]
    assert list(tmp_path.iterdir()) == [file]


LETTERS = st.sampled_from('ab,;"\n\r\t|é ') | st.characters(exclude_categories=["Cs", "Cc"])
FIELDS = st.text(LETTERS, max_size=6)


@settings(max_examples=60, deadline=None)
@given(
    rows=st.lists(st.tuples(FIELDS, FIELDS, FIELDS), min_size=1, max_size=8),
    separator=st.sampled_from(dialect.SEPARATORS),
    block=st.integers(1, 40),
)
def test_what_is_written_is_read_whatever_the_blocks(tmp_path_factory, rows, separator, block):
    file = tmp_path_factory.mktemp("csv") / "table.csv"
    table = pl.DataFrame(rows, schema=["x", "y", "z"], orient="row")
    table.write_csv(file, separator=separator, quote_style="always")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dialect, "_BLOCK", max(block, 12))
        with source.open_table(file, ("x", "y", "z")) as read:
            assert read.raw.collect().select(pl.exclude(source.ROW)).rows() == table.rows()


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 5), min_size=1, max_size=12),
    block=st.integers(12, 40),
)
def test_rows_of_other_lengths_are_found_whatever_the_blocks(tmp_path_factory, lengths, block):
    file = tmp_path_factory.mktemp("csv") / "table.csv"
    file.write_text("x,y,z\n" + "".join(",".join("123456"[:count]) + "\n" for count in lengths))
    torn = [place for place, count in enumerate(lengths, 1) if count != 3]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dialect, "_BLOCK", block)
        if not torn:
            with source.open_table(file, ("x", "y", "z")) as read:
                assert len(read.raw.collect()) == len(lengths)
            return
        with pytest.raises(DataError) as caught, source.open_table(file, ("x", "y", "z")):
            pass
    assert f"the header has 3 fields, and row {torn[0]} has {lengths[torn[0] - 1]}" in str(caught.value)
