"""Own events with cut-offs, and with several targets: what a question sees, and in which split it is."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from tables import SCHEMA, changed, events, load_own, owners, toml, written

from subquad import tasks
from subquad.fields import SPLITS
from subquad.tasks import DataError
from subquad.tasks.custom import Custom
from subquad.tasks.custom.questions import UNTIL, in_splits
from subquad.tasks.custom.schema import TargetTable, read_schema
from subquad.tasks.encoding import ENTITY, RARE
from subquad.tasks.splits import split_of
from subquad.testing.task import Case, contract

EVENTS = events()
MOMENTS = ("2020-06-01", "2020-07-01", "2020-08-01", "2020-09-01")


def questions(*, accounts: int = 40, each: int = 3) -> pl.DataFrame:
    """So many cut-offs of each account, answered at random."""
    chance = np.random.default_rng(1)
    names = [f"a{number:03}" for number in range(accounts) for _ in range(each)]
    return pl.DataFrame(
        {
            "account": names,
            "asked": [MOMENTS[number % len(MOMENTS)] for number in range(len(names))],
            "old": chance.integers(0, 2, len(names)),
        }
    )


def schema_of(folder: Path, *, events=EVENTS, questions=questions(), **keys: object) -> Path:  # noqa: B008
    schema = changed("target", cutoff="asked", **keys)
    return written(folder, events=events, owners=questions, schema=schema)


@pytest.mark.parametrize("split", ["entity", "time"])
@pytest.mark.parametrize("check", contract(), ids=lambda check: check.__name__)
def test_contract(check, split: str, tmp_path: Path):
    check(Case(Custom(schema=str(schema_of(tmp_path, split=split))), "old"))


@pytest.mark.parametrize("keep", [None, 3])
def test_a_question_sees_the_events_before_its_cut_off_and_no_others(tmp_path: Path, keep: int | None):
    data = load_own(schema_of(tmp_path), **({} if keep is None else {"keep": keep}))
    asked = {(account, day): old for account, day, old in questions().rows()}
    days = EVENTS.select("account", day=pl.col("date").str.to_date().cast(pl.Int32))
    found = 0
    for split in SPLITS:
        part = data.examples(split)
        for place in range(len(part)):
            account = data.histories.entities[part.entity[place]]
            day = str(np.datetime64(int(part.until[place]), "D"))
            assert part.target[place] == asked[account, day]
            earlier = days.filter((pl.col("account") == account) & (pl.col("day") < part.until[place]))
            times = data.histories.time[part.start[place] : part.stop[place]]
            if keep is not None:
                times = times[-keep:]
            assert times.tolist() == earlier["day"].sort().to_list()[-len(times) :]
            assert len(times) == (len(earlier) if keep is None else min(keep, len(earlier)))
            found += 1
    assert found == len(asked)


def test_no_entity_stands_in_two_splits(tmp_path: Path):
    data = load_own(schema_of(tmp_path))
    for split in SPLITS:
        names = {data.histories.entities[place] for place in data.examples(split).entity}
        assert {split_of(name) for name in names} == {split}


def test_questions_of_one_entity_are_one_group(tmp_path: Path):
    data = load_own(schema_of(tmp_path))
    assert np.bincount(data.group("test")).tolist() == [3] * len(np.unique(data.examples("test").entity))


@pytest.mark.parametrize(
    ("counts", "expected"),
    [
        ([60, 20, 20], [60, 20, 20]),
        ([10] * 10, [60, 20, 20]),
        ([97, 1, 1, 1], [97, 1, 2]),
        ([1, 1, 98], [1, 1, 98]),
        ([1, 98, 1], [1, 98, 1]),
    ],
)
def test_by_time_each_split_has_later_cut_offs_than_the_one_before(counts: list[int], expected: list[int]):
    moments = np.repeat(np.arange(len(counts), dtype=float), counts)
    asked = pl.DataFrame({ENTITY: [str(place) for place in range(len(moments))], UNTIL: moments})
    table = TargetTable(
        path=Path("t.csv"), entity="who", column="old", kind="binary", cutoff="asked", split="time"
    )
    parts = in_splits(table, asked, place="here")
    assert [len(parts[split]) for split in SPLITS] == expected
    for one, other in pairwise(SPLITS):
        assert parts[one][UNTIL].to_numpy().max() < parts[other][UNTIL].to_numpy().min()


def test_what_no_training_question_may_see_is_not_learnt(tmp_path: Path):
    late = pl.DataFrame(
        [(f"a{place:03}", "2020-12-20", "sales", 1e6) for place in range(40) for _ in range(RARE)],
        schema=EVENTS.schema,
        orient="row",
    )
    path = schema_of(tmp_path, events=pl.concat([EVENTS, late]))
    plain = tmp_path / "plain"
    plain.mkdir()
    assert load_own(path).encoding == load_own(schema_of(plain)).encoding


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        (
            [("a003", "2019-01-01", 1)],
            "1 of 121 questions have no events before their cut-off",
        ),
        (
            [("a000", MOMENTS[0], 9)],
            "1 of 120 questions have different values, first: entity 'a000'",
        ),
        ([("a000", "soon", 1)], "column 'asked': 1 value not a date or datetime in ISO form"),
        ([("nobody", MOMENTS[0], 1)], "1 of 41 entities have no events, first: row 121: 'nobody'"),
    ],
)
def test_a_question_that_cannot_be_asked_is_refused(tmp_path: Path, rows, said: str):
    extra = pl.DataFrame(rows, schema=questions().schema, orient="row")
    with pytest.raises(DataError) as caught:
        load_own(schema_of(tmp_path, questions=pl.concat([questions(), extra])))
    assert str(caught.value).startswith(str(tmp_path / "owners.csv"))
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"split": "age"}, "[target] split must be 'entity' or 'time', not 'age'"),
        ({"cutof": "asked"}, "unknown key 'cutof' in [target]; did you mean 'cutoff'?"),
    ],
)
def test_a_split_that_there_is_not_is_refused(tmp_path: Path, keys, said: str):
    with pytest.raises(DataError) as caught:
        load_own(schema_of(tmp_path, **keys))
    assert str(caught.value) == f"{tmp_path / 'schema.toml'}: {said}"


def test_time_splits_need_moments_and_three_of_them(tmp_path: Path):
    with pytest.raises(DataError, match=r"\[target\] split = 'time' needs moments"):
        load_own(written(tmp_path, events=EVENTS, owners=owners(), schema=changed("target", split="time")))
    two = questions().filter(pl.col("asked").is_in(MOMENTS[:2]))
    with pytest.raises(DataError, match="column 'asked': split = 'time' needs 3 different cut-offs at least"):
        load_own(schema_of(tmp_path, questions=two, split="time"))


def several(folder: Path) -> Path:
    """A schema with the targets `old` and `age`."""
    owned = owners().with_columns(age=30.0 + pl.int_range(40))
    written(folder, events=EVENTS, owners=owned)
    age = {**SCHEMA["target"], "column": "age", "kind": "regression"}
    path = folder / "schema.toml"
    named = {"events": SCHEMA["events"], "targets.young": SCHEMA["target"], "targets.age": age}
    path.write_text(toml(named))
    return path


def test_the_first_of_several_targets_is_the_default(tmp_path: Path):
    path = str(several(tmp_path))
    assert tasks.build("custom", schema=path).traits.targets == ("young", "age")
    assert tasks.load("custom", schema=path).target == "young"
    data = tasks.load("custom", target="age", schema=path)
    assert (data.target, data.objective.kind) == ("age", "regression")


def test_a_target_alone_has_the_fingerprint_that_it_has_among_others(tmp_path: Path):
    (tmp_path / "alone").mkdir()
    owned = owners().with_columns(age=30.0 + pl.int_range(40))
    alone = written(tmp_path / "alone", events=EVENTS, owners=owned)
    among = tasks.load("custom", schema=str(several(tmp_path)))
    assert tasks.load("custom", schema=str(alone)).fingerprint == among.fingerprint


def test_a_target_that_there_is_not_is_answered_with_the_nearest(tmp_path: Path):
    with pytest.raises(DataError, match="'custom' has no target 'yung'; did you mean 'young'"):
        tasks.load("custom", target="yung", schema=str(several(tmp_path)))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[target]\n", "give one [target] or several [targets.NAME], not both"),
        ("[targets.old]\nkind = 'binary'\n", "[targets.old] lacks the key 'path'"),
        ("targets = 3\n", "[targets] names no target: give each a section, as [targets.churn]"),
        ("[targets]\nold = 3\n", "there is no section [targets.old]"),
    ],
)
def test_targets_that_cannot_be_are_refused(tmp_path: Path, text: str, said: str):
    path = several(tmp_path)
    begin = toml({"events": SCHEMA["events"]})
    both = path.read_text() if text.startswith("[target]") else begin
    path.write_text(f"{both}\n{text}" if text.startswith("[") else f"{text}\n{begin}")
    with pytest.raises(DataError) as caught:
        read_schema(path)
    assert str(caught.value) == f"{path}: {said}"
