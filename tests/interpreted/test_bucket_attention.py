"""Triton kernels of attention within buckets against the reference in float64."""

from itertools import product

import pytest
import torch
from kernel_samples import assert_near, bucket_call, bucket_results, compare_buckets, drawn, moved

from subquad import Dims
from subquad.mechanisms.reformer import Reformer
from subquad.mechanisms.routing import RoutingAttention
from subquad.ops.backends import using
from subquad.ops.bucket_attention import triton
from subquad.ops.triton.launch import recorded

# but for the last two together, as `tests/test_bucket_attention.py` says
FLAGS = [flags for flags in product([False, True], repeat=4) if not all(flags[2:])]
REFORMER, ROUTING = (True, False, True, False), (False, True, False, False)


@pytest.mark.parametrize("flags", FLAGS, ids=str)
def test_outputs_and_gradients_are_those_of_the_reference(flags):
    compare_buckets(bucket_call(*flags))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("flags", [REFORMER, ROUTING], ids=str)
def test_half_precision_is_as_exact_as_its_rounding(flags, dtype):
    compare_buckets(bucket_call(*flags, dtype=dtype, b=1, d=32, e=32))


@pytest.mark.parametrize("size", [2, 5, 64])
@pytest.mark.parametrize("n", [1, 63, 65, 150])
@pytest.mark.parametrize("flags", [REFORMER, ROUTING], ids=str)
def test_lengths_and_chunks_beside_those_of_tiles(flags, n, size):
    compare_buckets(bucket_call(*flags, b=1, h=1, rounds=2, n=n, d=16, e=16, size=size))


@pytest.mark.parametrize(("d", "e"), [(3, 16), (16, 80), (128, 5)])  # in blocks of 16 and 128
def test_widths(d, e):
    compare_buckets(bucket_call(*REFORMER, b=1, h=1, n=40, d=d, e=e))


def test_launches_are_as_many_for_any_length():
    def launches(n):
        call = moved(bucket_call(*REFORMER, rounds=8, n=n, dtype=torch.bfloat16), "meta")
        with recorded(90) as found:
            bucket_results(triton, call, call.v)
        return [launch.kernel.__name__ for launch in found]

    assert launches(100) == launches(5000)
    assert len(launches(100)) == 3 * 8


MECHANISMS = [
    Reformer(Dims(heads=2, head_dim=8), causal=True, bucket=4, rounds=3),
    RoutingAttention(Dims(heads=2, head_dim=8), causal=True, clusters=3, window=7),
]


@pytest.mark.parametrize("mechanism", MECHANISMS, ids=lambda x: x.traits.name)
def test_what_stands_at_padding_is_not_read(mechanism):
    valid = drawn(2, 40, seed=5) < 0.5
    padding = ~valid[:, None, :, None]
    clean = [drawn(2, 2, 40, 8, seed=n).float() for n in range(len(mechanism.projections()))]
    spoilt = [x.masked_fill(padding, torch.nan) for x in clean]

    def outputs_and_gradients(inputs):
        leaves = [x.detach().requires_grad_() for x in inputs]
        out = mechanism(*leaves, valid=valid)
        return out.detach(), *torch.autograd.grad(out.sum(), leaves)

    with using("triton"):
        found, same = map(outputs_and_gradients, (spoilt, clean))
    assert all(torch.equal(x, y) for x, y in zip(found, same, strict=True))
    assert_near(found, outputs_and_gradients([x.double() for x in clean]))
