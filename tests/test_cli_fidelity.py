"""`subquad fidelity`: its tables, its JSON, and the tables of a model's layers."""

import json
from dataclasses import fields
from functools import partial
from io import StringIO

import pytest
from rich.console import Console

from subquad.cli import fidelity_tables
from subquad.cli.fidelity import THRESHOLD
from subquad.experiments.config import ActivationsConfig, FidelityStudy
from subquad.experiments.fidelity import by_norm_and_angle
from subquad.measure import layer_fidelity
from subquad.measure.activations import random_activations
from subquad.measure.fidelity import fidelity
from subquad.measure.layer_fidelity import Activations, layer_fidelities
from subquad.mechanism import Dims
from subquad.stand_in import build_stand_in

SMALL = ["--length", "24", "--heads", "2", "--head-dim", "8"]


@pytest.fixture
def call(command_line):
    return partial(command_line, "fidelity", *SMALL)


def test_the_threshold_of_the_command_is_that_of_python():
    assert THRESHOLD == layer_fidelity.THRESHOLD


def printed(*shown):
    console = Console(width=80, record=True, file=StringIO())
    console.print(*shown)
    return console.export_text()


def test_a_table_for_each_norm_and_angle_fits_into_80_columns(call, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    status, out, err = call(
        "--norms", "1,16", "--cosines", "0.5,0.9", "--attention", "performer:features=64|256,local:width=4"
    )
    assert (status, err) == (0, "")
    lines = [line.rstrip() for line in out.splitlines()]
    assert max(map(len, lines)) <= 80
    assert [line for line in lines if line.startswith("norm ")] == [
        f"norm {norm}, cosine {cosine}" for norm in (1, 16) for cosine in (0.5, 0.9)
    ]
    first = [line.split()[0] for line in lines if line.startswith((" softmax", " performer", " local"))]
    assert first == ["softmax", "performer:features=64", "performer", "local:width=4"] * 4
    assert "lost: softmax's mass on the other keys" in out


def test_json_holds_what_was_asked_and_a_row_for_each_mechanism_norm_and_angle(call):
    status, out, _ = call(
        "--norms", "1,16", "--cosines", "0,0.9", "--seeds", "2", "--clusters", "3", "--causal", "--json"
    )
    document = json.loads(out)
    assert status == 0
    assert document["study"]["activations"] == {"length": 24, "heads": 2, "head_dim": 8, "clusters": 3}
    assert (document["study"]["causal"], document["study"]["seeds"]) == (True, 2)
    assert len(document["rows"]) == 2 * 2 * len(FidelityStudy().attention)
    for row in document["rows"]:
        assert row["reason"] == ""
        assert row["kl"]["mean"] >= 0
        assert row["relative_error"]["deviation"] > 0
    assert {(row["norm"], row["cosine"]) for row in document["rows"]} == {
        (1, 0),
        (1, 0.9),
        (16, 0),
        (16, 0.9),
    }


@pytest.mark.parametrize("causal", [False, True])
def test_all_takes_every_mechanism_that_can_stand_in(call, causal):
    form = ["--causal"] * causal
    status, out, _ = call(
        "--attention", "all", "--norms", "1", "--cosines", "0.5", "--seeds", "1", "--json", *form
    )
    labels = {row["attention"] for row in json.loads(out)["rows"]}
    assert status == 0
    assert labels >= {"softmax", "performer", "local", "hedgehog"}
    assert ("sinks" in labels) == causal
    assert ("linformer" in labels) != causal


def test_every_seed_draws_its_own_activations_and_features():
    study = FidelityStudy(attention=("performer",), norms=(4.0,), cosines=(0.5,), seeds=3)
    told = []
    (row,) = by_norm_and_angle(study, tell=lambda doing, share: told.append(share))
    assert row.relative_error
    assert row.relative_error.deviation
    assert row.softmax_entropy
    assert row.softmax_entropy.deviation
    assert told == [0, 1 / 3, 2 / 3]
    assert by_norm_and_angle(study) == [row]


def test_a_row_is_the_mean_of_measurements_with_their_own_activations_and_features():
    sizes = {"length": 16, "heads": 2, "head_dim": 8, "clusters": 3}
    study = FidelityStudy(
        attention=("performer",),
        activations=ActivationsConfig(**sizes),
        norms=(4.0,),
        cosines=(0.5,),
        causal=True,
        seeds=2,
    )
    (row,) = by_norm_and_angle(study)
    dims = Dims(heads=2, head_dim=8, max_len=16)
    errors = []
    for seed in range(2):
        qkv = random_activations(norm=4, cosine=0.5, causal=True, seed=seed, **sizes)
        error = fidelity(build_stand_in("performer", dims, causal=True, draw=seed), *qkv, causal=True)
        errors.append(error.relative_error.mean if error.relative_error else 0)
    assert row.relative_error
    assert row.relative_error.mean == pytest.approx(sum(errors) / 2)


def test_every_option_of_the_study_can_be_given(call, monkeypatch):
    studies = []
    monkeypatch.setattr(
        "subquad.experiments.fidelity.by_norm_and_angle", lambda study, **_: studies.append(study) or exit(0)
    )
    call(
        "--norms",
        "2",
        "--cosines",
        "0.1",
        "--clusters",
        "2",
        "--causal",
        "--seeds",
        "1",
        "--attention",
        "linear",
    )
    default = FidelityStudy()
    for option in fields(default):
        assert getattr(studies[0], option.name) != getattr(default, option.name)
    for option in fields(default.activations):
        assert getattr(studies[0].activations, option.name) != getattr(default.activations, option.name)


def model(heads=10):
    layers = (
        Activations(
            f"model.layers.{place}.self_attn",
            *random_activations(norm=norm, cosine=0.8, length=32, heads=heads, head_dim=8, causal=True),
        )
        for place, norm in enumerate((0.1, 16.0))
    )
    return layer_fidelities("linear", layers)


def test_the_tables_of_a_model_show_layers_by_heads_and_say_which_bear_it():
    shown = model()
    assert fidelity_tables.verdict(shown) == (
        "1 of 2 layers bears linear at a threshold of 0.1: model.layers.0.self_attn"
    )
    first, second = fidelity_tables.heads(shown)
    assert [str(column.header) for column in (*first.columns, *second.columns)] == [
        *("layer", *"01234567"),
        *("layer", *"89"),
    ]
    summary = fidelity_tables.layers(shown)
    text = printed(summary, first, second)
    assert max(map(len, text.splitlines())) <= 80
    assert list(summary.columns[2].cells) == ["yes", "no"]
    worst = max(shown.layers[1].fidelity.heads, key=fidelity_tables.error_of)
    assert list(summary.columns[3].cells)[1] == str(worst.head)


def test_an_absent_figure_is_a_dash_and_rounding_is_zero():
    assert fidelity_tables.mean_of(None) == "–"
    assert fidelity_tables.rounded(3e-16) == "0"
    assert fidelity_tables.rounded(0.0123) == "0.012"
