"""Triton kernels on a card, against float64: what `tests/interpreted` shows of their code, when compiled.

    pytest -m cuda          as many processes as there are cores compile kernels

Where all of it passes, card and version of Triton may enter `PROVEN` in subquad/ops/triton/availability.py.
"""

from itertools import product

import pytest
import torch
from kernel_samples import (
    bucket_call,
    bucket_results,
    compare,
    compare_buckets,
    drawn,
    holes,
    inputs_of,
    moved,
    results,
)

from subquad.ops.backends import using
from subquad.ops.bucket_attention import triton
from subquad.ops.linear_attention import FeatureKind, KernelInputs, linear_attention
from subquad.testing.backend import certify_backend

if not torch.cuda.is_available():
    pytest.skip("there is no CUDA device", allow_module_level=True)

pytestmark = pytest.mark.cuda
FORMS = list(product(FeatureKind, (True, False)))
SIZES = [(x, 64) for x in (torch.float16, torch.float32)] + [(torch.bfloat16, d) for d in (32, 64, 80, 128)]


@pytest.mark.parametrize("operator", ["linear_attention", "recurrence", "bucket_attention"])
def test_the_kernels_give_the_numbers_of_the_reference(operator):
    refusals = {outcome.refusal for outcome in certify_backend(operator, "triton", device="cuda")}
    assert None in refusals


@pytest.mark.parametrize(("dtype", "width"), SIZES, ids=str)
@pytest.mark.parametrize(("kind", "causal"), FORMS)
def test_outputs_and_gradients_over_many_segments(kind, causal, width, dtype):
    sizes = {"queries": 1000, "keys": 1000, "d": width, "e": width, "features": 256}
    q, k, v, W = inputs_of(kind, **sizes)
    valid = holes(2, 1000)
    k, v = (x * valid[:, None, :, None] for x in (k, v))
    compare(kind, (q, k, v, W), valid, causal=causal, dtype=dtype, device="cuda")


@pytest.mark.parametrize(("kind", "causal"), FORMS)
def test_the_same_inputs_give_the_same_bits(kind, causal):
    q, k, v, W = inputs_of(kind, b=4, h=8, queries=4096, keys=4096, d=64, e=64, features=256)
    inputs = [x.to("cuda", torch.bfloat16) for x in (q, k, v)]
    directions = None if W is None else W.cuda()
    with using("triton"):
        first, second = (results(kind, inputs, directions, None, causal=causal) for _ in range(2))
    assert all(torch.equal(x, y) for x, y in zip(first, second, strict=True))


BUCKETS = [("reformer", (True, False, True, False), 64), ("routing", (False, True, False, False), 256)]


@pytest.mark.parametrize(("dtype", "width"), SIZES, ids=str)
@pytest.mark.parametrize(("name", "flags", "size"), BUCKETS)
def test_outputs_and_gradients_of_many_buckets(name, flags, size, width, dtype):
    call = bucket_call(*flags, rounds=4, n=1000, d=width, e=width, size=size, dtype=dtype)
    compare_buckets(call, device="cuda")


@pytest.mark.parametrize(("name", "flags", "size"), BUCKETS)
def test_the_same_buckets_give_the_same_bits(name, flags, size):
    call = bucket_call(*flags, h=8, rounds=8, n=4096, d=64, e=64, size=size, dtype=torch.bfloat16)
    call = moved(call, "cuda")
    first, second = (bucket_results(triton, call, call.v) for _ in range(2))
    assert all(torch.equal(x, y) for x, y in zip(first, second, strict=True))


def test_offsets_may_exceed_what_32_bits_hold():
    one = drawn(1, 1, 2**19, 64, seed=1).abs().to("cuda", torch.bfloat16)
    q = one.expand(1, 68, -1, -1).contiguous()
    with using("triton"), torch.no_grad():
        out = linear_attention(KernelInputs(q, q, FeatureKind.ELU), q, valid=None, causal=True)
    assert torch.equal(out[:, 0], out[:, -1])
