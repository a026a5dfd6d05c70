"""The operator beneath the kernel family, where denominators leave the range of a chunk."""

from contextlib import nullcontext

import pytest
import torch
from torch.testing import assert_close

from subquad.ops.backends import using
from subquad.ops.linear_attention import FeatureKind, KernelInputs, LinearCall, linear_attention, reference
from subquad.ops.native.library import missing

LENGTH = 100


@pytest.fixture
def backend(request):
    if request.param == "cpu" and (reason := missing()):
        pytest.skip(reason)
    with nullcontext() if request.param == "cpu" else using(request.param):
        yield


def drowned(dtype):
    """Log features and values; keys from 40 on are larger by exp(300) than those before, but for one."""
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, 2, LENGTH, 6, generator=generator, dtype=torch.float64) for _ in range(3))
    k[:, :, 40:] += 300
    k[:, :, 70] -= 150
    return [x.to(dtype).requires_grad_() for x in (q, k, v)]


def exact(q, k, v):
    weights = (q[:, :, :, None] + k[:, :, None]).logsumexp(-1)
    past = torch.ones(LENGTH, LENGTH, dtype=torch.bool).tril()
    return weights.masked_fill(~past, -torch.inf).softmax(-1) @ v


@pytest.mark.parametrize("backend", ["cpu", "parallel", "reference"], indirect=True)
def test_a_prefix_that_later_keys_drown_keeps_its_outputs_and_gradients(backend):
    inputs, truth = drowned(torch.float32), drowned(torch.float64)
    q, k, v = inputs
    out, expected = (
        linear_attention(KernelInputs(q, k, FeatureKind.LOGS), v, valid=None, causal=True),
        exact(*truth),
    )
    assert_close(out, expected.float(), rtol=1e-4, atol=1e-4)
    found, wanted = (torch.autograd.grad(y.square().sum(), x) for y, x in ((out, inputs), (expected, truth)))
    for one, other in zip(found, wanted, strict=True):
        assert_close(one, other.float(), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("chunk", [64, 8, 1])
def test_chunks_of_any_length_give_the_same(chunk):
    q, k, v = (x.detach().requires_grad_() for x in drowned(torch.float64))
    with torch.no_grad():
        k[:, :, 40:] -= 300
        call = LinearCall(q, k, v, None, None, FeatureKind.LOGS, True)
        result = reference.averages(call, chunk=chunk)
        found = reference.backward(torch.ones_like(v), call, result)
    assert_close(result.out, exact(q, k, v))
    assert_close(found, torch.autograd.grad(exact(q, k, v).sum(), (q, k, v)))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("backend", ["cpu", "parallel", "reference"], indirect=True)
def test_half_precision_is_float32_but_for_rounding_of_what_goes_in_and_out(backend, dtype):
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, 5, LENGTH, 8, generator=generator).to(dtype).requires_grad_() for _ in range(3))
    W = torch.randn(16, 8, generator=generator) / 8**0.25
    with torch.no_grad():
        k[:, 2, 40:] *= 40  # heads that lose the range of long chunks are done again by themselves
    wide = [x.detach().float().requires_grad_() for x in (q, k, v)]
    out = linear_attention(KernelInputs(q, k, FeatureKind.FAVOR, W), v, valid=None, causal=True)
    expected = linear_attention(
        KernelInputs(wide[0], wide[1], FeatureKind.FAVOR, W), wide[2], valid=None, causal=True
    )
    assert_close(out, expected.to(dtype))
    found, wanted = (
        torch.autograd.grad(y.square().sum(), x) for y, x in ((out, (q, k, v)), (expected, wide))
    )
    for one, other in zip(found, wanted, strict=True):
        assert one.dtype == dtype
        rounding = (
            4 * torch.finfo(dtype).eps * other.abs().max().item()
        )  # of outputs, which are kept as given
        assert_close(one.float(), other, rtol=0, atol=rounding)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_directions_may_be_of_another_precision(dtype, causal):
    q, k, v = torch.randn(3, 1, 2, 80, 8)
    W = torch.randn(16, 8).to(dtype)
    out = linear_attention(KernelInputs(q, k, FeatureKind.FAVOR, W), v, valid=None, causal=causal)
    assert_close(
        out, linear_attention(KernelInputs(q, k, FeatureKind.FAVOR, W.float()), v, valid=None, causal=causal)
    )
