"""Files that others cut, edited or replaced: each is one line that names it, or does no harm.

Each test damages files in a hundred ways and more, drawn from a seed.
"""

import hashlib
import json
import random
import sys

import polars as pl
import pytest
import report_samples as made_up
import torch
from corruption import corrupt, restore
from experiments_sample import changed, quick
from own_sample import write

from subquad import checkpoint, tasks
from subquad.__main__ import main
from subquad.experiments.model import build_model
from subquad.experiments.predictor import Predictor, export, load_model
from subquad.records import Store, comparison_key

TRIALS = 100


@pytest.fixture
def call(monkeypatch, capsys):
    """The command in this process: its status and the lines on standard error."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["subquad", *arguments])
        try:
            status = main()
        except SystemExit as end:
            status = end.code
        return status, capsys.readouterr().err.splitlines()

    return run


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A comparison of two rows, one of which failed."""
    setting = made_up.comparison([made_up.ROWS[0], made_up.ROWS[-1]], seeds=1, lengths=[512, 4096])
    return made_up.write(tmp_path / "runs", setting, made_up.sample(setting))


@pytest.mark.parametrize("seed", range(3))
def test_a_damaged_record_or_comparison_is_one_line_of_report_and_nothing_is_lost(call, folder, seed):
    chance = random.Random(seed)
    key = comparison_key(Store(folder).get_comparison())
    paths = sorted(folder.rglob("*.json"))
    before = {path: path.read_bytes() for path in paths}
    for _ in range(TRIALS // 2):
        path = chance.choice(paths)
        how = corrupt(path, chance)
        status, said = call("report", str(folder), *([key] if path.stem == key else []))
        assert status in {0, 1, 2}
        if status == 2:
            assert len(said) == 1, (path, how, said)
            assert said[0].startswith("subquad: "), (path, how, said)
            assert "internal error" not in said[0], (path, how, said)
            assert path.name in said[0] or "comparison" in said[0], (path, how, said)
            assert len(said[0]) < 1000, (path, how, said)
        restore(path, before[path])
        assert {each: each.read_bytes() for each in paths} == before
    assert call("report", str(folder))[0] == 1


def refused(act):
    """What is raised of what a user can mend, or nothing."""
    try:
        act()
    except (ValueError, OSError) as error:
        return str(error)
    return None


@pytest.mark.parametrize("attention", ["linear", "performer"])
def test_a_damaged_model_is_refused_in_one_line_or_answers(tmp_path, schema, data, attention):
    folder, spec = tmp_path / "model", changed(quick(schema, data), mechanism={"attention": attention})
    export(build_model(spec, data), data, spec, folder)
    events = pl.read_csv(schema.parent / "events.csv", infer_schema=False)
    config, weights = paths = [folder / name for name in ("config.json", "model.safetensors")]
    before = {path: path.read_bytes() for path in paths}
    intact = load_model(folder)
    assert isinstance(intact, Predictor)
    chance = random.Random(0)
    for _ in range(TRIALS):
        path = chance.choice((config, config, config, weights))
        how = corrupt(path, chance)
        if path is weights and weights.is_file() and weights.stat().st_size:  # as if it was written so
            digest = hashlib.sha256(weights.read_bytes()).hexdigest()
            config.write_text(json.dumps({**json.loads(config.read_text()), "weights": digest}))
        said = refused(lambda: load_model(folder))
        assert said is None or str(folder) in said, how
        if said is None and path is config:
            damaged = load_model(folder)
            assert isinstance(damaged, Predictor), how
            if damaged.encoding == intact.encoding:
                assert len(damaged.predict(events)), how
        for each in paths:
            restore(each, before[each])


def test_a_damaged_checkpoint_is_damaged_or_what_was_written(tmp_path):
    weights = {"a": torch.randn(3, 2), "b": torch.tensor(1.0, dtype=torch.bfloat16)}
    path = tmp_path / "kept.safetensors"
    checkpoint.write(path, {"weights": weights, "moments": {"0.step": torch.ones(())}}, {"course": {}})
    before = path.read_bytes()
    chance = random.Random(0)
    for _ in range(5 * TRIALS):
        how = corrupt(path, chance)
        said = refused(lambda: checkpoint.read(path))
        if said is None:
            assert not path.exists() or path.read_bytes() == before, how
        else:
            assert said.startswith(f"{str(path)!r} is damaged"), how
        restore(path, before)


@pytest.mark.parametrize("name", ["schema.toml", "events.csv", "owners.csv"])
def test_a_damaged_schema_or_table_is_refused_in_one_line_or_read(tmp_path, name):
    path = write(tmp_path).with_name(name)
    before = path.read_bytes()
    chance = random.Random(0)
    for _ in range(TRIALS // 2):
        how = corrupt(path, chance)
        said = refused(lambda: tasks.load("custom", schema=str(tmp_path / "schema.toml")))
        assert said is None or len(said) < 2000, how
        restore(path, before)
