"""What layers have in common is made once, and never kept beyond what it follows from."""

import subprocess
import sys
from contextlib import nullcontext

import pytest
import torch
from torch.testing import assert_close

from subquad.nn import encoder
from subquad.nn.encoder import Encoder, EncoderConfig
from subquad.ops.shared import reuse
from subquad.ops.shared.packing import Packing
from subquad.ops.shared.reuse import once_a_pass, once_a_process, one_pass
from subquad.patterns import Columns, Global, Local, PerHead, Ring
from subquad.patterns.pattern_attention import flex
from subquad.torch_internals import FakeTensorMode

DEPTH = 6


def model(attention, **options):
    torch.manual_seed(0)
    config = EncoderConfig(dim=16, depth=DEPTH, heads=2, max_len=64, attention=attention, options=options)
    return Encoder(config).eval()


def batch(seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2, 40, 16, generator=generator), torch.rand(2, 40, generator=generator) < 0.7


@pytest.fixture
def laid_out(monkeypatch):
    """The pattern of each layout that is made."""
    made = []
    for kind in (Ring, Columns):

        def parts(self, *, made=made, original=kind.parts, **named):
            made.append(self)
            return original(self, **named)

        monkeypatch.setattr(kind, "parts", parts)
    return made


@pytest.mark.parametrize("mode", [nullcontext, torch.no_grad, torch.inference_mode])
def test_six_layers_that_see_one_mask_lay_their_pattern_out_once_a_batch(mode, laid_out):
    star = model("star", width=2)
    with mode():
        for count in (1, 2):
            x, valid = batch(count)
            star(x, valid)
            assert len([one for one in laid_out if isinstance(one, Ring)]) == count


def test_a_pattern_that_does_not_depend_on_the_end_is_laid_out_once_for_all_masks(laid_out):
    longformer = model("longformer", window=38, globals=3)  # which no other test has
    for seed in range(3):
        longformer(*batch(seed))
    assert laid_out == [Columns(3)]


@pytest.mark.parametrize("attention", ["star", "bigbird", "longformer", "nystromformer"])
def test_layers_that_share_what_follows_from_the_mask_give_the_same_numbers(attention, monkeypatch):
    options = {"bigbird": {"block": 4}, "nystromformer": {"landmarks": 4}}.get(attention, {})
    layers, (x, valid) = model(attention, **options), batch(1)
    shared = layers(x, valid)
    monkeypatch.setattr(encoder, "one_pass", nullcontext)
    assert torch.equal(shared, layers(x, valid))


def test_a_mask_that_was_written_to_is_another():
    valid = torch.tensor([[True, True, False]])
    like = torch.zeros(1, 1, 3, 1)
    with one_pass():
        first = Packing.of(valid, like=like)
        assert Packing.of(valid, like=like) is first
        valid[0, 0] = False
        assert Packing.of(valid, like=like).count.tolist() == [1]


def test_nothing_is_shared_beyond_a_pass():
    valid, like = torch.ones(1, 3, dtype=torch.bool), torch.zeros(1, 1, 3, 1)
    with one_pass():
        first = Packing.of(valid, like=like)
    with one_pass():
        assert Packing.of(valid, like=like) is not first
    assert Packing.of(valid, like=like) is not Packing.of(valid, like=like)


def test_layers_share_the_blocks_of_a_pattern():
    pattern = PerHead(Local(9) | Global(1, last=1), Local(5))
    (x, valid), like = batch(1), torch.zeros(2, 1, 40, 1)

    def mask(valid):
        return flex.block_mask(pattern, 40, Packing.of(valid, like=like), x.device)

    with one_pass():
        first = mask(valid)
        assert mask(valid) is first
        assert mask(valid.clone()) is not first


def ones():
    """What makes ones of any length and counts how often."""
    calls = []
    return calls, lambda *inputs: calls.append(inputs) or torch.ones(int(inputs[-1]))


def test_what_is_made_while_a_graph_is_captured_is_not_kept_and_what_was_kept_is_used(monkeypatch):
    calls, function = ones()
    made = once_a_process(function)
    made(2)
    monkeypatch.setattr(reuse, "capturing", lambda: True)
    made(2)
    made(3)
    monkeypatch.undo()
    made(3)
    made(3)
    assert calls == [(2,), (3,), (3,)]


def test_what_fake_tensors_and_transforms_make_is_not_kept():
    calls, function = ones()
    made, shared = once_a_process(function), once_a_pass(function)
    with one_pass():
        with FakeTensorMode():
            assert type(made(2)) is not torch.Tensor
            shared(2)
        torch.func.grad(lambda x: x * (made(2) + shared(2)).sum())(torch.ones(()))
        assert type(made(2)) is type(shared(2)) is torch.Tensor
    assert len(calls) == 6


def test_what_is_kept_in_inference_mode_serves_training():
    made = once_a_process(lambda n: torch.ones(n))
    with torch.inference_mode():
        made(2)
    x = torch.ones(2, requires_grad=True)
    (x * made(2)).sum().backward()
    assert_close(x.grad, torch.ones(2))


COMPILED = """
import torch
from torch.testing import assert_close
from subquad.nn.encoder import Encoder, EncoderConfig

star = Encoder(EncoderConfig(dim=16, depth=2, heads=2, max_len=64, attention="star")).eval()
compiled = torch.compile(star, backend="eager", fullgraph=True)
x, valid = torch.randn(2, 40, 16), torch.rand(2, 40) < 0.7
with torch.no_grad():
    assert_close(compiled(x, valid), star(x, valid))
"""


def test_a_model_with_padding_is_compiled_as_one_graph():
    run = subprocess.run([sys.executable, "-c", COMPILED], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-3000:]
