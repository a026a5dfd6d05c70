"""Converted models as one graph: compiled whole, and exported."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from pretrained import SAMPLES, run
from torch.testing import assert_close

import subquad.integrations.huggingface as hf

MODELS = [("bert", "linear"), ("vit", "performer"), ("llama", "hedgehog"), ("gpt2", "local")]


def converted(kind: str, attention: str):
    model = hf.convert(SAMPLES[kind].model(), attention)
    inputs: dict[str, Any] = dict(SAMPLES[kind].inputs())
    if model.can_generate():
        inputs["use_cache"] = False
    return model, inputs


def compile_all():
    """In a process of its own, where no call is checked for its types, which would not be one graph."""
    for kind, attention in MODELS:
        model, inputs = converted(kind, attention)
        torch.compiler.reset()
        assert_close(run(torch.compile(model, backend="eager", fullgraph=True), inputs), run(model, inputs))


def test_a_converted_model_compiles_whole():
    command = [sys.executable, "-c", "from test_huggingface_graphs import compile_all; compile_all()"]
    told = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parent)
    assert told.returncode == 0, told.stderr


@pytest.mark.parametrize(("kind", "attention"), MODELS)
@torch.no_grad()
def test_a_converted_model_is_exported(kind: str, attention: str):
    model, inputs = converted(kind, attention)
    exported = torch.export.export(model, (), inputs).module()
    assert_close(run(exported, inputs), run(model, inputs), rtol=1e-4, atol=1e-5)
