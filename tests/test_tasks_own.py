"""Own data: what is read comes out right, whatever the format, order and size of the files."""

import os
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from tables import SCHEMA, changed, events, load_own, owners, toml, written
from torch.testing import assert_close

from subquad import tasks
from subquad.fields import SPLITS
from subquad.tasks.custom.events import shares
from subquad.tasks.events import EventData
from subquad.tasks.splits import split_of


def same(one: EventData, other: EventData) -> None:
    """Both have the same batches, names, encoding and question."""
    assert one.encoding == other.encoding
    assert one.target == other.target
    assert one.histories.entities == other.histories.entities
    for split in SPLITS:
        batches = [
            list(data.batches(split, size=8, length=99, seed=0, epoch=0, shuffle=False))
            for data in (one, other)
        ]
        assert_close(*batches, rtol=0, atol=0)


def test_an_entitys_events_are_its_own_in_time_with_its_answer(tmp_path):
    table = events()
    data = load_own(written(tmp_path, events=table, owners=owners()))
    answers = dict(owners().rows())
    for split in SPLITS:
        asked = data.examples(split)
        for number, entity in enumerate(asked.entity):
            name = data.histories.entities[entity]
            start, stop = asked.start[number], asked.stop[number]
            assert split_of(name) == split
            assert asked.target[number] == answers[name]
            expected = table.filter(pl.col("account") == name).sort("date", maintain_order=True)
            logs = data.histories.logs[start:stop, 0].astype(float)
            amounts = np.sign(logs) * np.expm1(np.abs(logs))
            np.testing.assert_allclose(amounts, expected["amount"], rtol=1e-4)
            ids = data.histories.categorical[start:stop, 0]
            words = [data.encoding.vocabularies[0][number - 1] for number in ids]
            assert words == expected["type"].to_list()
            days = expected["date"].str.to_date().diff().dt.total_days().fill_null(0)
            gaps = np.expm1(data.histories.logs[start:stop, 1].astype(float))
            np.testing.assert_allclose(gaps, days, rtol=1e-4)


def test_the_age_of_the_last_event_is_nothing(tmp_path):
    data = load_own(written(tmp_path, events=events(), owners=owners()))
    batch = next(data.batches("test", size=99, length=12, seed=0, epoch=0, shuffle=False))
    last = batch.inputs[1][:, -1, -1] * data.encoding.deviation[-1] + data.encoding.mean[-1]
    assert_close(last, torch.zeros_like(last), atol=1e-5, rtol=0)


def test_numbers_are_standardised_over_training_entities(tmp_path):
    data = load_own(written(tmp_path, events=events(), owners=owners()))
    (batch,) = data.batches("train", size=99, length=12, seed=0, epoch=0, shuffle=False)
    numbers = batch.inputs[1][batch.valid]
    assert_close(numbers.mean(0), torch.zeros(4), atol=1e-5, rtol=0)
    assert_close(numbers.std(0, correction=0), torch.ones(4), atol=1e-5, rtol=0)


def test_parquet_gives_what_csv_gives(tmp_path):
    (tmp_path / "csv").mkdir()
    typed = events().with_columns(pl.col("date").str.to_date(), pl.col("type").cast(pl.Categorical))
    schema = {name: {**part, "path": part["path"].replace("csv", "parquet")} for name, part in SCHEMA.items()}
    same(
        load_own(written(tmp_path / "csv", events=events(), owners=owners())),
        load_own(written(tmp_path, events=typed, owners=owners(), schema=schema)),
    )


def test_a_whole_number_is_the_same_name_in_any_type(tmp_path):
    (tmp_path / "float").mkdir()
    numbers = {f"a{number:03}": number for number in range(40)}
    account = pl.col("account").replace_strict(numbers)
    schema = changed("events", path="events.parquet", categorical=["type", "account"])
    integers = events().with_columns(account)
    same(
        load_own(written(tmp_path, events=integers, owners=owners().with_columns(account), schema=schema)),
        load_own(
            written(
                tmp_path / "float",
                events=integers.with_columns(pl.col("account").cast(pl.Float64)),
                owners=owners().with_columns(account),
                schema=schema,
            )
        ),
    )


def test_one_file_may_hold_events_and_answers(tmp_path):
    (tmp_path / "apart").mkdir()
    both = events().join(owners(), on="account", how="left", maintain_order="left")
    schema = changed("target", path="events.csv")
    same(
        load_own(written(tmp_path, events=both, owners=both, schema=schema)),
        load_own(written(tmp_path / "apart", events=events(), owners=owners())),
    )


def test_the_order_of_rows_does_not_matter(tmp_path):
    (tmp_path / "sorted").mkdir()
    moments = pl.Series("date", np.random.default_rng(0).permutation(len(events())))
    table = events().with_columns(moments)  # no two at once: their order would be the file's
    same(
        load_own(written(tmp_path, events=table, owners=owners())),
        load_own(written(tmp_path / "sorted", events=table.sort("date"), owners=owners().reverse())),
    )


def test_a_file_read_in_shares_gives_what_it_gives_at_once(tmp_path):
    schema = written(tmp_path, events=events(), owners=owners())
    same(load_own(schema), load_own(schema, rows_at_once=30))


def test_shares_are_no_larger_than_asked():
    counts = pl.DataFrame({"entity": [f"{number:03}" for number in range(200)], "len": [7, 1, 30, 2] * 50})
    shared_out = [part["entity"] for part in shares(counts, 100)]
    assert pl.concat(shared_out).to_list() == counts["entity"].to_list()
    sizes = [counts.filter(pl.col("entity").is_in(share.to_list()))["len"].sum() for share in shared_out]
    assert len(sizes) >= 20
    assert max(sizes) < 100 + 30


def test_keep_keeps_the_last_events(tmp_path):
    schema = written(tmp_path, events=events(), owners=owners())
    whole, kept = load_own(schema), load_own(schema, keep=5)
    assert kept.longest == 5
    for split in SPLITS:
        for number in range(len(whole.examples(split))):
            all_of, last = whole.examples(split).stop[number], kept.examples(split).stop[number]
            for column in ("time", "categorical", "logs"):
                few, all_ = getattr(kept.histories, column), getattr(whole.histories, column)
                np.testing.assert_array_equal(few[last - 5 : last], all_[all_of - 5 : all_of])


def test_entities_without_an_answer_are_left_out_and_counted(tmp_path):
    data = load_own(written(tmp_path, events=events(accounts=50), owners=owners()))
    assert len(data.histories.entities) == 40
    assert data.summary["entities without an answer, left out"] == 10
    assert data.summary["events of these"] == 120


def test_a_category_is_learnt_from_training_entities_and_only_if_it_is_not_rare(tmp_path):
    table = events().with_row_index()
    splits = table["account"].map_elements(split_of, return_dtype=pl.String)
    train, test = (table["index"].filter(splits == split) for split in ("train", "test"))
    type_ = pl.col("type")
    for word, rows in (("four", train[:4]), ("five", train[4:9]), ("unseen", test[:20]), (None, train[9:20])):
        type_ = pl.when(pl.col("index").is_in(rows.to_list())).then(pl.lit(word)).otherwise(type_)
    data = load_own(written(tmp_path, events=table.with_columns(type=type_), owners=owners()))
    known = data.encoding.vocabularies[0]
    assert {"five", None} <= set(known)
    assert not {"four", "unseen"} & set(known)
    assert (data.histories.categorical == 0).sum() == 24


def test_classes_stand_in_the_order_of_their_numbers(tmp_path):
    answers = owners(accounts=120).with_columns(old=pl.int_range(120) % 3 * 5)
    schema = changed("target", kind="multiclass")
    data = load_own(written(tmp_path, events=events(accounts=120, each=3), owners=answers, schema=schema))
    assert data.objective.classes == ("0", "5", "10")
    assert data.objective.readout.outputs == 3
    assert data.objective.metric == "accuracy"


def test_regression_is_standardised_for_training_and_scored_in_its_own_units(tmp_path):
    answers = owners().with_columns(old=1000.0 + 50 * pl.int_range(40))
    schema = written(tmp_path, events=events(), owners=answers, schema=changed("target", kind="regression"))
    data = load_own(schema)
    batches = data.batches("train", size=8, length=9, seed=0, epoch=0, shuffle=True)
    truth = torch.cat([batch.target for batch in batches])
    assert_close(truth.mean(), torch.tensor(0.0), atol=1e-6, rtol=0)
    assert_close(truth.std(correction=0), torch.tensor(1.0))
    one_deviation_off = (truth + 1)[:, None].numpy()
    objective = data.objective
    score, _ = objective.judge(objective.decode(truth.numpy()), objective.restored(one_deviation_off))
    assert score == pytest.approx(objective.to_json()["scale"], rel=1e-5)


@pytest.mark.parametrize("change", ["events", "owners", "schema"])
def test_changed_data_have_another_fingerprint(tmp_path, change):
    before = load_own(written(tmp_path, events=events(), owners=owners())).fingerprint
    assert load_own(written(tmp_path, events=events(), owners=owners())).fingerprint == before
    after = written(
        tmp_path,
        events=events(seed=1) if change == "events" else events(),
        owners=owners().with_columns(old=1 - pl.col("old")) if change == "owners" else owners(),
        schema=changed("events", numeric=[]) if change == "schema" else SCHEMA,
    )
    assert load_own(after).fingerprint != before


def test_files_that_moved_have_the_same_fingerprint(tmp_path):
    (tmp_path / "there").mkdir()
    (tmp_path / "here").mkdir()
    here, there = (written(tmp_path / name, events=events(), owners=owners()) for name in ("here", "there"))
    assert load_own(here).fingerprint == load_own(there).fingerprint


@pytest.mark.parametrize(
    ("dates", "days"),
    [
        (["2020-01-01", "2020-01-02"], 1.0),
        (["2020-01-01 10:00", "2020-01-01T16:00:00.00"], 0.25),
        (["2020-01-01T10:00:00+02:00", "2020-01-01T20:00:00Z"], 0.5),
        ([17, 20.5], 3.5),
        (["17", " 1.8e1 "], 1.0),
    ],
    ids=["dates", "datetimes", "zones", "numbers", "numbers as text"],
)
def test_times_are_days_or_numbers(tmp_path, dates, days):
    accounts = [name for name in owners()["account"] for _ in dates]
    table = pl.DataFrame({"account": accounts, "date": pl.Series(dates * 40, strict=False)})
    schema = changed("events", categorical=None, numeric=None)
    data = load_own(written(tmp_path, events=table, owners=owners(), schema=schema))
    assert np.diff(data.histories.time[:2]) == pytest.approx(days)


def shared(name: str) -> Path:
    folder = Path(os.environ.get("SUBQUAD_DATA", "")) / name
    if "SUBQUAD_DATA" not in os.environ or not folder.is_dir():
        pytest.skip(f"SUBQUAD_DATA names no folder with {name}")
    return folder


def test_the_age_groups_of_a_real_bank_load(tmp_path):
    folder = shared("sber_age_sample")
    schema = {
        "events": {
            "path": str(folder / "age-transactions.csv"),
            "entity": "client_id",
            "time": "trans_date",
            "categorical": ["small_group"],
            "numeric": ["amount_rur"],
        },
        "target": {
            "path": str(folder / "age-bin.csv"),
            "entity": "client_id",
            "column": "bins",
            "kind": "multiclass",
        },
    }
    path = tmp_path / "schema.toml"
    path.write_text(toml(schema))
    data = tasks.load("custom", schema=str(path))
    assert isinstance(data, EventData)
    assert data.objective.classes == ("0", "1", "2", "3")
    assert len(data.histories.time) == 1000
    assert sum(len(data.examples(split)) for split in SPLITS) == 100


def test_the_directorates_of_real_purchase_cards_load(tmp_path):
    path = shared("birmingham_cards") / "transactions.parquet"
    cards = pl.read_parquet(path, columns=["card", "segment"])
    commonest = cards.group_by("card").agg(pl.col("segment").cast(pl.String).mode().sort().first())
    commonest.drop_nulls().write_parquet(tmp_path / "segments.parquet")
    schema = {
        "events": {
            "path": str(path),
            "entity": "card",
            "time": "date",
            "categorical": ["merchant", "expense_code"],
            "numeric": ["amount_pence"],
        },
        "target": {
            "path": "segments.parquet",
            "entity": "card",
            "column": "segment",
            "kind": "multiclass",
            "metric": "macro_f1",
        },
    }
    (tmp_path / "schema.toml").write_text(toml(schema))
    data = tasks.load("custom", schema=str(tmp_path / "schema.toml"))
    assert isinstance(data, EventData)
    assert len(data.histories.time) == 295_062  # of 295,634: the others' cards have no segment
    assert data.objective.readout.outputs == 5
    schema["target"] |= {"path": str(path)}
    (tmp_path / "schema.toml").write_text(toml(schema))
    with pytest.raises(tasks.DataError, match=r"column 'segment': \d+ values missing"):
        tasks.load("custom", schema=str(tmp_path / "schema.toml"))
