"""Three tensors that a wrapper made of one are one sequence, and two sequences never pass for one."""

from typing import Any

import pytest
import torch
from mechanism_names import FORMS
from torch import distributed, nn
from torch._C._distributed_c10d import HashStore
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.testing import assert_close
from torch.utils.checkpoint import checkpoint

from subquad.nn.multihead import MultiheadAttention
from subquad.nn.sources import require_one
from subquad.registry import catalog

LENGTH = 24
REAL = torch.tensor([[False] * 3 + [True] * 21, [True] * 20 + [False] * 4])
ONE_SEQUENCE = [form for form in FORMS if form[1] or not catalog()[form[0]].traits.cross]
forms = pytest.mark.parametrize(("attention", "causal"), FORMS)
one_sequence = pytest.mark.parametrize(("attention", "causal"), ONE_SEQUENCE)


def layer(attention: str, *, causal: bool = False) -> MultiheadAttention:
    torch.manual_seed(0)
    options = catalog()[attention].traits.tiny
    accepted = "values" if causal else False
    return MultiheadAttention(16, 2, attention, causal=accepted, max_len=LENGTH, **options)


def tokens(*, seed: int = 1) -> torch.Tensor:
    x = torch.randn(2, LENGTH, 16, generator=torch.Generator().manual_seed(seed))
    return x.masked_fill(~REAL[..., None], torch.nan)


def results(module: nn.Module, x: torch.Tensor, *others: torch.Tensor) -> list[Any]:
    """The output, and the gradients of everything that was used."""
    module.zero_grad()
    leaf = x.detach().requires_grad_()
    out, _ = module(leaf, *(others or (leaf, leaf)), key_padding_mask=~REAL)
    out.masked_fill(~REAL[..., None], 0).square().sum().backward()
    gradients = [p.grad for p in module.parameters() if p.grad is not None]
    return [out[REAL], leaf.grad, *(getattr(g, "full_tensor", lambda g=g: g)() for g in gradients)]


def assert_same(found: list[Any], expected: list[Any]) -> None:
    """But for the order of sums, whose terms may be larger than what is left of them."""
    for x, y in zip(found, expected, strict=True):
        assert_close(x, y, rtol=1.3e-6, atol=1e-5 * max(1.0, y.abs().max().item()))


@pytest.fixture(scope="module")
def process_group():
    distributed.init_process_group("gloo", store=HashStore(), rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


RELEASE = tuple(map(int, torch.__version__.split(".")[:2]))
shards = pytest.mark.skipif(RELEASE < (2, 7), reason="torch 2.6 shards on GPUs only")
compiles = pytest.mark.skipif(RELEASE < (2, 7), reason="torch 2.6 compiles no jaxtyping")


@shards
@pytest.mark.usefixtures("process_group")
@pytest.mark.filterwarnings("ignore:FSDP2-wrapped module")  # that any linear map returns a view
@forms
def test_a_sharded_layer_gives_what_it_gives_whole(attention, causal):
    whole, sharded = layer(attention, causal=causal), layer(attention, causal=causal)
    fully_shard(sharded)
    assert_same(results(sharded, tokens()), results(whole, tokens()))


@shards
@pytest.mark.usefixtures("process_group")
@pytest.mark.filterwarnings("ignore:FSDP2-wrapped module")
@one_sequence
def test_a_layer_sharded_in_half_precision_takes_the_copies_it_is_cast_to(attention, causal):
    module = layer(attention, causal=causal)
    fully_shard(module, mp_policy=MixedPrecisionPolicy(param_dtype=torch.bfloat16))
    out, *gradients = results(module, tokens())
    assert out.dtype == torch.bfloat16
    assert all(gradient.isfinite().all() for gradient in gradients)


@one_sequence
def test_checkpointing_that_runs_a_layer_again_changes_nothing(attention, causal):
    module = layer(attention, causal=causal)

    class Checkpointed(nn.Module):
        def forward(self, q, k, v, key_padding_mask):
            return checkpoint(module, q, k, v, key_padding_mask, use_reentrant=True)

        def parameters(self, recurse=True):
            return module.parameters()

    assert_same(results(Checkpointed(), tokens()), results(module, tokens()))


@one_sequence
def test_each_of_three_copies_gets_the_gradient_of_its_own_use(attention, causal):
    module, x = layer(attention, causal=causal), tokens()
    expected = results(module, x)
    key, value = x.clone().requires_grad_(), x.clone().requires_grad_()
    out, gradient, *weights = results(module, x, key, value)
    used = [part for name, part in (("k", key), ("v", value)) if name in module.widths]
    assert all(part.grad is not None for part in used)
    parts = [part.grad for part in used if part.grad is not None]
    assert_same([out, sum(parts, gradient), *weights], expected)
    _, of_queries, *_ = results(module, x, x.detach(), x.detach())  # in the same memory
    assert_close(of_queries, gradient)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_nan_is_no_second_sequence(dtype):
    x = tokens().to(dtype)
    require_one(x, x.clone(), otherwise="never")
    with pytest.raises(ValueError, match="as it must"):
        require_one(x, x.nan_to_num(0), otherwise="as it must")


@one_sequence
@pytest.mark.parametrize("other", ["one number", "one token more", "another precision"])
def test_a_second_sequence_is_refused(attention, causal, other):
    module, x = layer(attention, causal=causal), tokens()
    y = {
        "one number": x.index_put((torch.tensor(1), torch.tensor(7), torch.tensor(3)), torch.tensor(9.0)),
        "one token more": torch.cat([x, x[:, :1]], 1),
        "another precision": x.double(),
    }[other]
    with pytest.raises(ValueError, match="pass one tensor as query, key and value"):
        module(x, y, y)


def test_values_apart_are_for_mechanisms_of_queries_keys_and_values():
    x, y = tokens(), tokens(seed=2)
    module = layer("local")
    expected, _ = module(x, x, y, key_padding_mask=~REAL)
    out, _ = module(x, x.clone(), y, key_padding_mask=~REAL)
    assert_close(out[REAL], expected[REAL])
    assert (out - module(x, x, x, key_padding_mask=~REAL)[0])[REAL].abs().max() > 0.01
    with pytest.raises(ValueError, match="'gated-linear' has no cross-attention: pass one tensor"):
        layer("gated-linear", causal=True)(x, y, y)
    with pytest.raises(ValueError, match=r"'gated-linear' projects to q, k, v, .*: pass one tensor"):
        layer("gated-linear", causal=True)(x, x.clone(), y)


@compiles
def test_copies_in_a_graph_are_told_apart_when_it_runs():
    module = layer("nystromformer").eval()
    x, y = tokens().nan_to_num(0), tokens(seed=2).nan_to_num(0)
    program = torch.export.export(module, (x, x.clone(), x.clone())).module()
    assert_close(program(x, x.clone(), x.clone())[0], module(x, x, x)[0])
    with pytest.raises(RuntimeError, match="'nystromformer' has no cross-attention: pass one tensor"):
        program(x, y, y)


@compiles
def test_compiled_code_tells_copies_from_a_second_sequence():
    def attend(x, other):
        require_one(x, other, otherwise="they differ")
        return x + other

    compiled = torch.compile(attend, fullgraph=True, backend="aot_eager")
    x, y = tokens(), tokens(seed=2)
    assert_close(compiled(x, x.clone()), x + x, equal_nan=True)
    with pytest.raises(RuntimeError, match="they differ"):
        compiled(x, y)


def test_tensors_without_numbers_pass():
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        x = mode.from_tensor(tokens())
        assert layer("svd")(x, x.clone(), x.clone())[0].shape == x.shape
    require_one(tokens().to("meta"), tokens().to("meta"), otherwise="never")


def test_under_vmap_copies_are_refused_with_the_remedy():
    x = tokens().nan_to_num(0)
    with pytest.raises(ValueError, match="pass one tensor as query, key and value"):
        torch.vmap(layer("svd"))(x, x, x)
