"""Vision transformers of timm with mechanisms: what they give, keep, save and refuse."""

import copy
import os
import pickle
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close
from vision import SAMPLES, flexible, images, make

import subquad.integrations.timm as vision
from subquad import catalog
from subquad.nn import redraw

every_sample = pytest.mark.parametrize("sample", SAMPLES)
MECHANISMS: dict[str, dict[str, Any]] = {
    "linear": {},
    "performer": {"features": 16},
    "hedgehog": {},
    "nystromformer": {"landmarks": 4},
    "linformer": {"rank": 4},
}


@torch.no_grad()
def run(model: nn.Module, *inputs: Any, **named: Any) -> Tensor:
    return model(*(inputs or (images(),)), **named)


def converted(model: nn.Module) -> dict[str, vision.ConvertedLayer]:
    return {name: x for name, x in model.named_modules() if isinstance(x, vision.ConvertedLayer)}


@every_sample
def test_with_softmax_attention_a_model_gives_what_it_gave(sample: str):
    model = make(sample)
    before = run(model)
    assert vision.convert(model, "softmax") is model
    assert len(converted(model)) == len(vision.attention_layers(model)) > 0
    assert_close(run(model), before, rtol=1e-4, atol=1e-4)


@every_sample
@pytest.mark.parametrize("name", ["linear", "performer", "hedgehog", "nystromformer"])
def test_another_attention_gives_something_else_and_all_weights_learn(sample: str, name: str):
    model = make(sample)
    before, weights = run(model), dict(model.named_parameters())
    vision.convert(model, name, **MECHANISMS[name]).train()
    out = model(images())
    out.square().mean().backward()
    assert (out - before).abs().max() > 1e-2
    own = dict(model.named_parameters())
    assert all(own[key] is x for key, x in weights.items())
    learnt = {
        key: x
        for key, x in own.items()
        if "subquad" in key or any(part in key for part in ("qkv", "q_proj", "in_proj"))
    }
    assert learnt
    assert [key for key, x in learnt.items() if x.grad is None or not x.grad.isfinite().all()] == []
    assert all(x.grad.abs().max() > 0 for key, x in learnt.items() if "weight" in key and x.grad is not None)


@every_sample
def test_a_restored_model_attends_as_before(sample: str):
    model = make(sample)
    before, names, kinds = run(model), list(model.state_dict()), [type(x) for x in model.modules()]
    vision.restore(vision.convert(model, "linear"))
    assert [type(x) for x in model.modules()] == kinds
    assert list(model.state_dict()) == names
    assert_close(run(model), before, rtol=0, atol=0)


@pytest.mark.parametrize("name", MECHANISMS)
def test_a_state_dict_is_loaded_into_a_model_that_was_converted_alike(name: str):
    model = vision.convert(make("norms"), name, **MECHANISMS[name])
    saved = model.state_dict()
    assert list(make("norms").state_dict()) == [key for key in saved if ".subquad." not in key]
    torch.manual_seed(9)
    other = vision.convert(SAMPLES["norms"]().eval(), name, **MECHANISMS[name])
    assert (run(other) - run(model)).abs().max() > 1e-2
    other.load_state_dict(saved)
    assert_close(run(other), run(model), rtol=0, atol=0)


@pytest.mark.parametrize("sample", ["vit", "eva"])
def test_copies_and_what_another_process_reads_are_converted_too(sample: str):
    model = vision.convert(make(sample), "performer", features=16)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert_close(run(other), run(model), rtol=0, atol=0)
        first = next(iter(converted(other).values()))
        with torch.no_grad():
            for x in first.get_submodule("subquad").buffers():
                x.add_(1.0)
        assert (run(other) - run(model)).abs().max() > 1e-3


def test_devices_types_and_modes_follow_the_model():
    model = vision.convert(make("vit").bfloat16().train(), "performer", features=16)
    assert {x.dtype for x in model.state_dict().values()} == {torch.bfloat16}
    assert all(module.training for module in model.modules())
    assert run(model, images().bfloat16()).isfinite().all()
    away = vision.convert(make("vit").to("meta"), "performer", features=16)
    assert {x.device.type for x in away.state_dict().values()} == {"meta"}


def test_some_layers_are_chosen_and_others_attend_as_before():
    model = make("vit")
    before = run(model)
    vision.convert(model, "softmax", only="blocks.1.*")
    assert list(converted(model)) == ["blocks.1.attn"]
    vision.convert(model, "linear", only="blocks.1.*")  # again
    assert (run(model) - before).abs().max() > 1e-2
    vision.convert(model, "linear+softmax")
    assert [x.subquad.attention for x in converted(model).values()] == ["linear", "softmax"]


def test_layers_that_pool_stay_as_they_are():
    model = vision.convert(make("pooled"), "linear")
    assert list(converted(model)) == ["blocks.0.attn", "blocks.1.attn"]
    assert type(model.attn_pool).__name__ == "AttentionPoolLatent"


@pytest.mark.parametrize(("sample", "tokens"), [("vit", 17), ("deit", 18), ("norms", 20), ("pooled", 16)])
def test_weights_per_position_are_as_many_as_tokens_unless_said_otherwise(sample: str, tokens: int):
    for max_len in (None, 40):
        model = vision.convert(make(sample), "linformer", rank=4, max_len=max_len)
        lengths = {x.subquad.dims.max_len for x in converted(model).values()}
        assert lengths == {max_len or tokens}
        assert run(model).isfinite().all()


def test_attention_is_converted_however_timm_would_have_computed_it():
    model = make("vit")
    before = run(model)
    for layer in model.modules():
        if hasattr(layer, "fused_attn"):
            layer.fused_attn = False
    assert_close(run(vision.convert(model, "softmax")), before, rtol=1e-4, atol=1e-4)
    assert (run(vision.convert(model, "linear")) - before).abs().max() > 1e-2
    with pytest.raises(ValueError, match=r"never formed in a converted layer: .*restore"):
        model.blocks[0].attn.fused_attn = False
    assert not vision.restore(model).blocks[0].attn.fused_attn


def test_activations_that_are_computed_again_give_the_same_gradients():
    model = vision.convert(make("rope"), "hedgehog").train()
    model(images()).square().sum().backward()
    grads = {name: x.grad for name, x in model.named_parameters()}
    model.zero_grad()
    model.set_grad_checkpointing(True)
    model(images()).square().sum().backward()
    for name, x in model.named_parameters():
        assert_close(x.grad, grads[name])


GRAPHS = """
import torch
from torch.testing import assert_close
from vision import images, make
from subquad.integrations.timm import convert

model, x = convert(make("rope"), "performer", features=16), images()
with torch.no_grad():
    out = model(x)
    assert_close(torch.compile(model, backend="eager", fullgraph=True)(x), out)
    assert_close(torch.export.export(model, (x,)).module()(x), out)
"""


@pytest.mark.slow
def test_a_converted_model_is_compiled_and_exported_as_one_graph():
    here = str(Path(__file__).parent)
    path = os.pathsep.join([here, os.environ.get("PYTHONPATH", "")])
    script = [sys.executable, "-c", GRAPHS]  # types that are checked at run time are no part of a graph
    run = subprocess.run(script, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": path})
    assert run.returncode == 0, run.stderr[-3000:]


def test_random_features_are_drawn_anew():
    model = vision.convert(make("vit"), "performer", features=16, redraw_every=2).train()
    before = run(model)
    assert redraw(model, step=2, seed=0)
    assert (run(model) - before).abs().max() > 1e-3


def patches(pictures: Tensor, *, padding: int) -> dict[str, Tensor]:
    """As NaFlex takes them, with places behind them that hold none."""
    each = pictures.unfold(2, 4, 4).unfold(3, 4, 4).permute(0, 2, 3, 4, 5, 1).flatten(3).flatten(1, 2)
    place = torch.cartesian_prod(torch.arange(4), torch.arange(4)).expand(len(each), -1, -1)
    rest = [0, 0, 0, padding]
    return {
        "patches": nn.functional.pad(each, rest, value=3.0),
        "patch_coord": nn.functional.pad(place, rest),
        "patch_valid": nn.functional.pad(torch.ones(each.shape[:2]), rest[2:]).bool(),
    }


@pytest.mark.parametrize("keys_alone", [False, True])
@pytest.mark.parametrize("name", ["softmax", "linear", "performer", "nystromformer"])
def test_padding_is_absent(name: str, keys_alone: bool):
    torch.manual_seed(1)
    model = flexible(use_key_only_attn_mask=keys_alone, reg_tokens=2).eval()
    whole = patches(images(), padding=0)
    before = run(model, whole)
    vision.convert(model, name, **MECHANISMS.get(name, {}))
    alone = run(model, whole)
    assert_close(run(model, patches(images(), padding=5)), alone, rtol=1e-4, atol=1e-4)
    assert name != "softmax" or torch.allclose(alone, before, rtol=1e-4, atol=1e-4)


def mask(*shape: int) -> Tensor:
    return torch.ones(*shape, dtype=torch.bool)


REFUSED = {
    "causal": ({"is_causal": True}, "is_causal asks that no token sees those after it"),
    "a triangle": ({"attn_mask": mask(17, 17).tril()}, "keeps more apart than padding"),
    "a mask by head": ({"attn_mask": mask(2, 4, 17, 17).tril()}, "keeps more apart than padding"),
    "a row that sees nothing": (
        {"attn_mask": mask(17, 17).scatter(0, torch.zeros(1, 17).long(), False)},
        "keeps",
    ),
    "numbers": ({"attn_mask": torch.randn(17, 17)}, "keeps more apart than padding, or adds to scores"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_a_call_asks_beyond_padding_is_refused(case: str):
    named, message = REFUSED[case]
    with pytest.raises(ValueError, match=message):
        run(vision.convert(make("vit"), "linear"), images(), **named)


@pytest.mark.parametrize("added", [False, True])
def test_a_mask_of_keys_is_honoured_whatever_its_form(added: bool):
    model = make("vit")
    keep = mask(2, 1, 1, 17)
    keep[0, ..., 9:] = keep[1, ..., :4] = False
    given = torch.zeros(keep.shape).masked_fill(~keep, -torch.inf) if added else keep
    before = run(model, images(), attn_mask=given)
    assert_close(run(vision.convert(model), images(), attn_mask=given), before, rtol=1e-4, atol=1e-4)
    linear = vision.convert(model, "linear")
    rows = [run(linear, images()[i : i + 1], attn_mask=given[i : i + 1]) for i in range(2)]
    assert_close(run(linear, images(), attn_mask=given), torch.cat(rows), rtol=1e-4, atol=1e-4)


def test_dropout_that_is_set_later_is_refused_by_the_call():
    model = vision.convert(make("vit"), "linear").train()
    model.blocks[0].attn.attn_drop.p = 0.1
    with pytest.raises(ValueError, match="cannot drop out: set attn_drop to 0"):
        run(model)


UNFIT = {
    "swin": "layers.0.blocks.0.attn, layers.1.blocks.0.attn: it attends within windows, .*only=",
    "beit": "blocks.0.attn, blocks.1.attn: it adds a bias to scores by position, .*only=",
    "cait": "blocks.0.attn, blocks.1.attn: it mixes the weights of its heads, .*only=",
    "xcit": "blocks.0.attn: it attends between channels, .*only=",
    "dropout": "blocks.0.attn, blocks.1.attn: it drops attention weights, .*with attn_drop_rate=0.0",
    "resnet": "ResNet has no attention of timm's among tokens",
}


@pytest.mark.parametrize("kind", UNFIT)
def test_what_cannot_be_converted_is_named_with_its_remedy_and_nothing_is_changed(kind: str):
    model = make(f"unfit {kind}")
    with pytest.raises(ValueError, match=UNFIT[kind]):
        vision.convert(model, "linear")
    assert not converted(model)


def test_a_layer_that_was_derived_from_timms_is_not_taken_for_it():
    model = make("layer of Attention")

    class Other(type(model.layer)):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x).softmax(-1)

    Other.__module__ = "timm.models.other"
    model.layer.__class__ = Other
    with pytest.raises(
        ValueError, match="a Other attends by code of its own, which would ignore a mechanism"
    ):
        vision.convert(model, "linear")


def test_options_and_names_that_do_not_fit_are_refused():
    cases: tuple[tuple[str, dict[str, Any], str], ...] = (
        ("liner", {}, "did you mean 'linear'"),
        ("performer", {"feature": 3}, "has no option 'feature'; did you mean 'features'"),
        (
            "linear",
            {"only": "decoder.*"},
            "only='decoder.*' fits no attention layer; there are blocks.0.attn",
        ),
        ("conformer", {}, "'conformer' has a whole layer"),
        ("reformer", {}, "'reformer' takes no k"),
        ("linear+softmax*2", {}, "is a network of 3 layers, and 2 are asked for"),
        ("transformer-xl", {}, "'transformer-xl'"),
    )
    for name, options, message in cases:
        model = make("vit")
        with pytest.raises(ValueError, match=re.escape(message)):
            vision.convert(model, name, **options)
        assert not converted(model)


def test_queries_that_turn_are_refused_to_what_has_positions_of_its_own(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(catalog()["linear"], "turned_inputs", lambda self: ())
    with pytest.raises(ValueError, match="its queries and keys turn with their positions, and 'linear'"):
        vision.convert(make("rope"), "linear")
    vision.convert(make("vit"), "linear")


def test_transformers_convert_takes_them_too():
    hf = pytest.importorskip("subquad.integrations.huggingface")
    model = make("vit")
    before = run(model)
    assert hf.convert(model, "linformer", rank=4, max_len=20, only="blocks.0.*") is model
    assert list(converted(model)) == ["blocks.0.attn"]
    assert_close(run(hf.restore(model)), before, rtol=0, atol=0)
    hf.convert(nn.Sequential(model), "linear")
    assert len(converted(model)) == 2
    mixed = nn.ModuleList([model, nn.MultiheadAttention(8, 2)])
    with pytest.raises(ValueError, match=r"of timm's \(0.blocks.0.attn\) and of torch's \(1\): call"):
        hf.convert(mixed, "linear")
    for function in (hf.transfer, hf.distil):
        with pytest.raises(
            ValueError, match=r"a VisionTransformer is no transformers\.PreTrainedModel: .*loop"
        ):
            function(model, [])
