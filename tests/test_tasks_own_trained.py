"""Models trained on own texts and lists answer for new ones, and the page on own data says what works."""

import re
from datetime import date, timedelta
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from rows_sample import LABELS, PAIRS, TEXT, TOKENS, pages, pairs, texts, written

import subquad
from subquad import tasks
from subquad.config import ModelConfig
from subquad.experiments.comparison import plan
from subquad.experiments.config import Comparison, TrainingConfig
from subquad.experiments.model import build_model
from subquad.experiments.predictor import Predictor, export
from subquad.notation import written as notation
from subquad.records import Store
from subquad.tasks import DataError

PAGE = Path(__file__).parents[1] / "docs" / "own-data.md"


def request(schema: Path, *, target: str | None = None) -> Comparison:
    return Comparison(
        tasks=(notation("custom", {"schema": str(schema)}),),
        target=target,
        attention=("linear",),
        model=ModelConfig(dim=8, depth=1, heads=2),
        training=TrainingConfig(steps=2, batch=8),
        bench=False,
        device="cpu",
    )


def untrained(schema: Path, folder: Path) -> Predictor:
    """A model as it begins."""
    spec = plan(request(schema)).fits[0]
    data = tasks.load("custom", schema=str(schema))
    export(build_model(spec, data), data, spec, folder)
    predictor = subquad.load_model(folder)
    assert isinstance(predictor, Predictor)
    return predictor


def test_a_model_of_own_texts_takes_texts(tmp_path: Path):
    model = untrained(written(tmp_path, texts(), TEXT), tmp_path / "model")
    answers = model.predict(["a good film", "née"])
    assert answers.columns == ["text", "class", "probability of 0", "probability of 1"]
    assert answers["text"].to_list() == ["a good film", "née"]


def test_a_model_of_own_pairs_takes_pairs(tmp_path: Path):
    model = untrained(written(tmp_path, pairs(), PAIRS), tmp_path / "model")
    answers = model.predict([("what?", "this"), ["and", "that"]])
    assert answers["pair"].to_list() == [["what?", "this"], ["and", "that"]]
    assert answers.columns[1:] == ["class", "probability of 0", "probability of 1"]


def test_a_model_of_own_lists_takes_lists(tmp_path: Path):
    model = untrained(written(tmp_path, pages(), TOKENS), tmp_path / "model")
    numbers, words = model.predict([[3, 4], [99]]), model.predict([["3", "4"], ["never"]])
    assert numbers["tokens"].to_list() == [[3, 4], [99]]
    assert numbers["class"].to_list() == words["class"].to_list()
    with pytest.raises(DataError, match="have no moment: leave until= out"):
        model.predict([[3]], until=1.0)


def test_a_model_of_labels_gives_each_token_one_whatever_stands_beside_it(tmp_path: Path):
    model = untrained(written(tmp_path, pages(), LABELS), tmp_path / "model")
    lists = [[1], [2, 3, 4], [5, 6]]
    together = model.predict(lists)["classes"].to_list()
    assert [len(classes) for classes in together] == [1, 3, 2]
    assert together == [model.predict([row])["classes"][0].to_list() for row in lists]


def tables() -> dict[str, pl.DataFrame]:
    """The tables of the page, with more rows than it has room for."""
    chance = np.random.default_rng(0)
    accounts = [f"a{number}" for number in range(60)]
    first = date(2024, 1, 1)
    events = pl.DataFrame(
        {
            "account_id": accounts * 10,
            "date": [first + timedelta(days=int(day)) for day in chance.integers(0, 150, 600)],
            "type": chance.choice(["in", "out"], 600).tolist(),
            "amount": chance.normal(size=600).round(2),
        }
    )
    asked = [first + timedelta(days=160 + 7 * (number % 4)) for number in range(180)]
    return {
        "transactions.csv": events,
        "owners.csv": pl.DataFrame(
            {
                "account_id": accounts,
                "over_55": chance.integers(0, 2, 60),
                "region": chance.choice(["east", "west"], 60).tolist(),
            }
        ),
        "questions.csv": pl.DataFrame(
            {
                "account_id": [accounts[number // 3] for number in range(180)],
                "asked_on": asked,
                "left_within_a_month": chance.integers(0, 2, 180),
            }
        ),
        "reviews.csv": texts(),
        "answers.csv": pairs(),
        "visits.parquet": pages().rename({"tags": "sections"}),
    }


SCHEMAS = re.findall(r"```toml\n(.*?)```", PAGE.read_text(), flags=re.DOTALL)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("documented")
    for name, table in tables().items():
        table.write_csv(path / name) if name.endswith(".csv") else table.write_parquet(path / name)
    (path / "letters").mkdir()
    for place, letter in enumerate(texts()["review"].to_list()[:40]):
        (path / "letters" / f"{place}.txt").write_text(letter * (1 + place % 5))
    return path


@pytest.mark.parametrize("schema", SCHEMAS, ids=lambda schema: schema.splitlines()[0])
def test_every_schema_of_the_page_is_trained_and_judged_for_every_target(
    schema: str, folder: Path, tmp_path: Path
):
    path = folder / "schema.toml"
    path.write_text(schema)
    task = tasks.build("custom", schema=str(path))
    for target in task.traits.targets:
        planned = plan(request(path, target=target))
        (document,) = planned.document["tasks"]
        assert document["unit"] == task.traits.unit
        for spec in (*planned.baselines, *planned.fits):
            done = spec.run(Store(tmp_path / target), lambda *_: None)
            assert spec.data.target == target
            assert np.isfinite(done["result"]["test"][done["data"]["metric"]])
