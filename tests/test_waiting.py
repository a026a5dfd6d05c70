"""Nothing makes the host wait for a GPU, and what is done in place of looking at numbers gives the same ones.

`meta` stands for the GPU, as in the check of mechanisms; the other way of computing is run on the CPU.
"""

from pathlib import Path

import pytest
import torch

from subquad.nn.encoder import Encoder, EncoderConfig
from subquad.nn.multihead import MultiheadAttention
from subquad.ops.backends import backend
from subquad.ops.shared import parallel
from subquad.ops.shared.waiting import may_wait, require, require_at_most, without_waiting
from subquad.ops.window_attention import window_attention
from subquad.registry import find
from subquad.testing.backend import certify_backend
from subquad.testing.mechanism.cases import each_form, make, precision, random_inputs
from subquad.testing.mechanism.empty import check_empty_batch, check_empty_sequence
from subquad.testing.mechanism.meaning import check_matches_definition, check_ties_match_definition
from subquad.testing.mechanism.numerics import check_half_precision
from subquad.testing.mechanism.padding import check_all_padding_gives_zeros, check_padding_is_invisible
from subquad.testing.mechanism.waiting import Operators, no_waiting

LOOKING = (  # those that look at numbers where they may
    *("local", "longformer", "bigbird", "star", "sparse-transformer", "pattern", "poolingformer"),
    *("transformer-xl", "compressive", "infinity", "routing", "reformer", "cosformer"),
    *("linformer", "nystromformer"),
)
CHECKS = (
    check_matches_definition,
    check_ties_match_definition,
    check_padding_is_invisible,
    check_all_padding_gives_zeros,
    check_empty_batch,
    check_empty_sequence,
)


@pytest.mark.parametrize("check", CHECKS, ids=lambda x: x.__name__.removeprefix("check_"))
@pytest.mark.parametrize("name", LOOKING)
def test_without_a_look_at_numbers_the_contract_is_kept(name, check, monkeypatch):
    monkeypatch.setattr(parallel, "MAX_NUMBERS", 500)  # so that there are several turns
    with without_waiting():
        check(find(name))


@pytest.mark.parametrize("name", ["linformer", "nystromformer"])
def test_half_precision_that_is_not_widened_is_as_right(name):
    with without_waiting():
        check_half_precision(find(name))


@pytest.mark.parametrize("name", ["transformer-xl", "compressive", "infinity"])
def test_relative_attention_without_a_look_is_right_in_float32(name):
    with precision(torch.float32), without_waiting():
        check_matches_definition(find(name))


@pytest.mark.parametrize("operator", ["window_attention", "tile_attention", "bucket_attention"])
def test_without_a_look_operators_give_the_numbers_of_the_reference(operator):
    assert all(outcome.refusal is None for outcome in certify_backend(operator, "parallel"))


class Calls(Operators):
    """Counts them."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += 1
        return super().__torch_dispatch__(func, types, args, kwargs)


@pytest.mark.parametrize("name", ["poolingformer", "bigbird", "sparse-transformer", "compressive"])
def test_the_number_of_calls_does_not_grow_with_the_length(name):
    (mechanism, *_) = each_form(find(name))
    mechanism.to("meta")
    counts = []
    for length in (300, 1200):
        inputs = {key: y.to("meta") for key, y in random_inputs(mechanism, length=length).items()}
        leaves = [y.requires_grad_() for y in inputs.values()]
        with Calls() as calls:
            torch.autograd.grad(mechanism(**inputs).sum(), leaves, allow_unused=True)
        counts.append(calls.count)
    assert counts[1] <= counts[0]


def x(*shape):
    return torch.zeros(*shape, device="meta")


@torch.library.custom_op("subquad_tests::looks", mutates_args=())
def looks(x: torch.Tensor) -> torch.Tensor:
    return x + float(x.sum())  # here


class Looks(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        return grad if grad.any() else -grad  # here


def backwards():
    y = x(3).requires_grad_()
    torch.autograd.grad(Looks.apply(y).sum(), y)


LINES = [
    n for n, text in enumerate(Path(__file__).read_text().splitlines(), start=1) if text.endswith("# here")
]
WAITING = {
    "one number": lambda: x(3).sum().item(),
    "numbers": lambda: x(3).tolist(),
    "a whole number": lambda: int(x(3).argmax()),
    "yes or no": lambda: bool(x(3).any()),
    "a copy": lambda: x(3).cpu(),
    "a comparison": lambda: torch.equal(x(3), x(3)),
    "a mask": lambda: x(3)[x(3) > 0],
    "writing by a mask": lambda: x(3).index_put_((x(3) > 0,), x(2)),
    "places": lambda: (x(3) > 0).nonzero(),
    "places by where": lambda: torch.where(x(3) > 0),
    "repeats": lambda: x(3).repeat_interleave(x(3).long()),
    "distinct numbers": lambda: x(3).unique(),
    "a factorisation": lambda: torch.linalg.cholesky(x(3, 3)),
    "a size": lambda: torch.zeros(int(x(3).sum())),
    "an operator": lambda: looks(x(3)),
    "a backward pass": backwards,
}
COPYING = {
    "a list": lambda: torch.tensor([1, 2], device="meta"),
    "a number": lambda: x(3).new_tensor(2.0),
    "a tensor": lambda: torch.zeros(3).to("meta"),
    "numbers into others": lambda: x(3).copy_(torch.zeros(3)),
    "an index": lambda: x(3)[torch.tensor([0, 2])],
    "a list for an index": lambda: x(3)[[0, 2]],
}


@pytest.mark.parametrize("what", WAITING)
def test_what_waits_is_named_by_file_and_line(what):
    call = WAITING[what]
    lines = {"an operator": LINES[0], "a backward pass": LINES[1]}
    line = lines.get(what, call.__code__.co_firstlineno)
    with no_waiting(), pytest.raises(AssertionError, match=rf"test_waiting\.py:{line} waits for the device"):
        call()


@pytest.mark.parametrize("what", COPYING)
def test_numbers_that_are_copied_to_the_device_are_named_by_file_and_line(what):
    call = COPYING[what]
    line = call.__code__.co_firstlineno
    with no_waiting(), pytest.raises(AssertionError, match=rf"test_waiting\.py:{line} copies numbers"):
        call()


def test_what_only_the_device_has_to_know_is_no_waiting():
    with no_waiting():
        y = x(3, 4)
        y[y > 0] = 0
        y[0, 1:] = 2.0
        y.masked_fill_(y > 0, 1.0).cumsum(0).sort(stable=True)
        y += torch.tensor(2.0)
        y.index_select(0, torch.arange(2, device=y.device)).topk(2)
        assert int(torch.tensor(3)) == 3


ENCODERS = [
    {"attention": "linear", "positions": "learnt"},
    {"attention": "local", "positions": "rotary", "kv_heads": 1},
    {"attention": "transformer-xl", "positions": "sinusoidal", "options": {"segment": 5, "memory": 5}},
    {"attention": "cosformer", "positions": "none"},
]


@pytest.mark.parametrize("config", ENCODERS, ids=lambda x: x["attention"])
def test_a_model_never_waits_for_the_device(config):
    sizes = {"dim": 16, "depth": 2, "heads": 2, "max_len": 32}
    model = Encoder(EncoderConfig(**sizes, causal=True, **config)).to("meta")
    valid = torch.ones(2, 24, dtype=torch.bool, device="meta")
    with no_waiting():
        out = model(x(2, 24, 16), valid)
        torch.autograd.grad(out.sum(), list(model.parameters()), allow_unused=True)
        with torch.no_grad():
            _, state = model.step(x(2, 8, 16), valid=valid[:, :8])
            model.step(x(2, 1, 16), state=state)


def test_masks_in_the_layout_of_torch_are_not_looked_at():
    layer = MultiheadAttention(16, 2, "linear", causal=True).to("meta")
    y = x(2, 5, 16)
    added = x(5, 5)
    with no_waiting():
        layer(y, y, y, x(2, 5), attn_mask=added, is_causal=True)
        layer(y, y.view_as(y), y.clone())


def test_what_may_not_be_looked_at_is_asked_on_the_device():
    wrong = torch.tensor(False)
    with pytest.raises(ValueError, match=r"^it does not hold$"):
        require(wrong, "it does not hold")
    with without_waiting(), pytest.raises(RuntimeError, match="it does not hold"):
        require(wrong, "it does not hold")
    with pytest.raises(ValueError, match=r"^of 7 only 6$"):
        require_at_most(6, torch.tensor([3, 7]), "of {} only 6")
    with without_waiting(), pytest.raises(RuntimeError, match="of more only 6"):
        require_at_most(6, torch.tensor([3, 7]), "of {} only 6")
    require_at_most(6, torch.tensor([], dtype=torch.int64), "of {} only 6")


def test_which_backend_serves_says_who_may_look():
    q, k, v = torch.randn(3, 1, 1, 5, 4, dtype=torch.float64)
    told = str(backend(window_attention, q, k, v, left=1, right=1))
    assert told.startswith("window_attention: reference")
    assert "parallel refuses: loops in cache are faster on cpu" in told
    with without_waiting():
        told = str(backend(window_attention, q, k, v, left=1, right=1))
    assert told.startswith("window_attention: parallel")


def test_what_is_gathered_in_inference_is_added_to_in_training():
    mechanism = make(find("routing"), causal=True)
    inputs = random_inputs(mechanism)
    with torch.inference_mode():
        mechanism(**inputs)
    mechanism(**inputs)
    mechanism.update()


def test_a_look_is_free_on_a_cpu_alone():
    assert may_wait(torch.zeros(1))
    assert not may_wait(x(1))
    with without_waiting():
        assert not may_wait(torch.zeros(1))
