"""Skeletons of published comparisons, chosen by name."""

import json
from dataclasses import asdict, fields, replace

import pytest
import report_samples as made_up
import torch
import typer
from own_sample import write
from typer.core import TyperGroup

from subquad.cli.commands import app
from subquad.config import ModelConfig
from subquad.experiments.comparison import plan
from subquad.experiments.config import Comparison, TrainingConfig
from subquad.experiments.presets import PRESETS, preset, preset_of
from subquad.nn.encoder import Encoder, EncoderConfig
from subquad.report.page import render


def options(*arguments):
    """What the command line makes of them."""
    group = typer.main.get_command(app)
    assert isinstance(group, TyperGroup)
    return group.commands["compare"].make_context("compare", list(arguments)).params


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_sets_options_that_there_are(name):
    given = options("--preset", name)
    assert PRESETS[name].options.items() <= given.items()
    known = {each.name for config in (ModelConfig, TrainingConfig) for each in fields(config)}
    assert PRESETS[name].options.keys() <= known
    TrainingConfig(**PRESETS[name].training)


@pytest.mark.parametrize("arguments", ["--preset lra-ports --depth 4", "--depth 4 --preset lra-ports"])
def test_an_option_that_is_given_goes_before_the_preset(arguments):
    given = options(*arguments.split())
    assert (given["depth"], given["dim"], given["learning_rate"]) == (4, 64, 1e-4)
    assert options("--preset", "lra-ports", "--dim", str(ModelConfig().dim))["dim"] == ModelConfig().dim


def test_without_a_preset_the_defaults_are_our_own():
    assert asdict(ModelConfig()).items() <= options().items()


def test_an_unknown_preset_is_answered_with_the_nearest():
    with pytest.raises(ValueError, match="unknown preset 'lra-port'; did you mean 'lra-ports'"):
        options("--preset", "lra-port")


def test_the_ports_blocks_have_as_many_weights_as_theirs():
    """65 thousand, of two blocks; their positions alone are 262 thousand at 4,096 tokens."""
    model = preset("lra-ports").model
    encoder = Encoder(EncoderConfig(**asdict(model), max_len=4096))
    blocks = sum(weight.numel() for weight in encoder.blocks.parameters())
    assert 65_000 < blocks < 68_000
    assert encoder.positions is not None
    assert sum(weight.numel() for weight in encoder.positions.parameters()) == 4096 * 64


@pytest.mark.parametrize(
    ("name", "millions"), [("lra-listops", 8.4), ("lra-text", 3.1), ("lra-matching", 0.79)]
)
def test_the_arenas_blocks_have_as_many_weights_as_theirs(name, millions):
    with torch.device("meta"):
        encoder = Encoder(EncoderConfig(**asdict(PRESETS[name].model), max_len=64))
    blocks = sum(weight.numel() for weight in encoder.blocks.parameters())
    assert blocks / 1e6 == pytest.approx(millions, rel=0.02)


def test_the_name_is_recorded_where_the_skeleton_is_the_presets_in_full(tmp_path):
    schema = str(write(tmp_path))
    config = Comparison(
        tasks=(f"custom:schema={schema!r}",),
        model=preset("lra-ports").model,
        attention=("linear",),
        bench=False,
    )
    planned = plan(config)
    assert planned.document["preset"] == "lra-ports"
    assert planned.document["model"] == asdict(preset("lra-ports").model)
    assert planned.fits[0].model == preset("lra-ports").model
    assert json.loads(json.dumps(planned.document)) == planned.document
    assert preset_of(replace(config.model, depth=3)) is None


def test_the_page_names_the_preset():
    setting = made_up.comparison(preset="lra-ports")
    assert "<dt>preset</dt><dd>lra-ports</dd>" in render(made_up.whole((setting, [])))
    assert "<dt>preset</dt>" not in render(made_up.whole((made_up.comparison(), [])))
