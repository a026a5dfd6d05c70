"""Operators refuse what does not fit: no axis is broadcast that was not meant to be, and none is read past.

Each input in turn has each of its axes shortened, lengthened and cut to one. What an operator takes all the
same must come out as if the axis had been repeated beforehand. Then each comes in another dtype.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import NamedTuple

import pytest
import torch
from jaxtyping import TypeCheckError
from torch import Tensor
from torch.testing import assert_close

from subquad.ops.banded_attention import banded_attention
from subquad.ops.bucket_attention import bucket_attention
from subquad.ops.convolution import convolve
from subquad.ops.hashing import hashed
from subquad.ops.linear_attention import FeatureKind, KernelInputs, advance, linear_attention
from subquad.ops.recurrence import decayed_product, delta_product
from subquad.ops.recurrence.rows import Fusion
from subquad.ops.relative_attention import Layout, Slots, Weights, relative_attention
from subquad.ops.tile_attention import Tiling, tile_attention
from subquad.ops.window_attention import window_attention

Inputs = dict[str, Tensor]
REFUSALS = (ValueError, TypeCheckError)  # the latter where run-time type checks come first
B, H, N, D = 2, 3, 6, 4
MASK = torch.tensor([[True] * N, [True] * 4 + [False] * 2])
LENGTHS = torch.tensor([N, 4])
FREE = {"x": {0, 2, 3}, "kernel": {1}}  # of the convolution
SEGMENTS = Layout(size=3, queries=3, memory=3, reach=6, missing=3, compressed=0, step=0, missing_compressed=0)


class Case(NamedTuple):
    run: Callable[..., Tensor]
    inputs: Inputs
    free: Mapping[str, set[int]] = MappingProxyType({})  # axes that may have any size


def normal(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64)


def tokens(**more: Tensor) -> Inputs:
    return {name: normal(B, H, N, D) for name in "qkv"} | more


def both(found: tuple[Tensor, ...]) -> Tensor:
    return torch.cat([x.flatten() for x in found])


def linear(q, k, v, W, valid, *, causal):
    return linear_attention(KernelInputs(q, k, FeatureKind.FAVOR, W), v, valid=valid, causal=causal)


def decayed(q, k, v, log_decay, state, turn, gate, scale):
    fusion = Fusion(rms_norm_eps=1e-5, rotary=turn, gate=gate, scale=scale)
    return both(decayed_product(q, k, v, log_decay, state=state, fusion=fusion))


def relative(q, k, v, u, bias, W_R, first, count, held):
    where = {"first": first, "count": count, "num_held": held, "layout": SEGMENTS}
    return relative_attention(q, Weights(u, bias, W_R), Slots(k, v), **where)


def cases() -> dict[str, Case]:
    torch.manual_seed(0)
    wide, fading = {"v": {3}, "W": {0}}, -torch.rand(B, H, N, D, dtype=torch.float64)
    state, by_segment = normal(B, H, D, D), torch.tensor([[3, 3]] * B)
    favor = tokens(W=normal(5, D), valid=MASK)
    order = torch.rand(B, H, 2, N).argsort(-1)
    tiled = {"queries": torch.arange(N).view(1, 2, 3), "seen": torch.ones(1, 2, 3, 3, dtype=torch.bool)}
    around = {"turn": normal(B, N, D), "gate": normal(B, H, N, D), "scale": normal(D)}
    biases = {"u": normal(H, D), "bias": normal(H, D), "W_R": normal(H, D, D)}
    rates = {"beta": fading[..., :1].exp(), "log_decay": fading[..., 1:2], "state": state}
    pooled = {name: normal(B, H, 3, D) for name in "kv"} | {"last": torch.tensor([[1, 3, 5]] * B)}
    return {
        "linear": Case(lambda **x: linear(**x, causal=False), favor, {**wide, "q": {2}}),
        "causal": Case(lambda **x: linear(**x, causal=True), favor, wide),
        "window": Case(
            lambda q, k, v, n: window_attention(q, k, v, left=2, right=1, lengths=n)[0],
            tokens(n=LENGTHS),
            {"v": {3}},
        ),
        "tiles": Case(
            lambda q, k, v, queries, keys, seen, n: tile_attention(
                q, k, v, [Tiling(queries, keys, seen, 3, 1)], lengths=n, band=None
            ),
            tokens(**tiled, keys=torch.arange(N).view(1, 2, 3), n=LENGTHS),
            {"v": {3}, "queries": {0}, "keys": {0, 2}, "seen": {0, 2, 3}},
        ),
        "buckets": Case(
            lambda q, k, v, order, labels: bucket_attention(q, k, v, order=order, labels=labels, size=3),
            tokens(order=order, labels=torch.zeros_like(order)),
            {"v": {3}},
        ),
        "decay by channel": Case(decayed, tokens(log_decay=fading, state=state, **around)),
        "one decay": Case(
            lambda q, k, v, log_decay, state: both(decayed_product(q, k, v, log_decay, state=state)),
            tokens(log_decay=fading[..., :1], state=state),
            {"log_decay": {3}},
        ),
        "delta": Case(
            lambda q, k, v, beta, log_decay, state: both(
                delta_product(q, k, v, beta, log_decay, state=state)
            ),
            tokens(**rates),
            {"log_decay": {3}},
        ),
        "relative": Case(
            relative,
            tokens(**biases, first=0 * by_segment, count=by_segment, held=torch.tensor([[0, 3]] * B)),
            {"q": {2}, "v": {3}, "W_R": {1}},  # how many queries there are the counts say
        ),
        "convolution": Case(convolve, {"x": normal(B, H, 40, D), "kernel": normal(H, 5)}, FREE),
        "hashes": Case(
            lambda x, R, count: hashed(x, R, count, bucket=2),
            {"x": normal(B, H, N, D), "R": normal(2, 3, D, 32), "count": LENGTHS},
            {"x": {1, 2}, "R": {0, 1}},
        ),
        "bands": Case(
            lambda q, k, v, last: banded_attention(q, k, v, last=last, stride=2, before=4, after=0),
            {"q": normal(B, H, N, D), **pooled},
            {"q": {2}, "v": {3}},
        ),
    }


CASES = cases()
ALL = [(name, given) for name, case in CASES.items() for given in case.inputs]


def in_precision(inputs: Inputs, dtype: torch.dtype) -> Inputs:
    return {name: x.to(dtype) if x.is_floating_point() else x for name, x in inputs.items()}


def resized(x: Tensor, axis: int, size: int) -> Tensor:
    return x.index_select(axis, torch.arange(size) % x.shape[axis])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize(("name", "given"), ALL)
def test_an_axis_that_does_not_fit_is_refused_or_means_what_its_repetition_means(name, given, dtype):
    run, inputs, free = CASES[name]
    inputs = in_precision(inputs, dtype)
    x = inputs[given]
    for axis in set(range(x.ndim)) - free.get(given, set()):
        for size in {x.shape[axis] - 1, x.shape[axis] + 1, 2 * x.shape[axis], 1} - {0, x.shape[axis]}:
            other = resized(x, axis, size)
            try:
                found = run(**{**inputs, given: other})
            except REFUSALS:
                continue
            assert size == 1, f"took {tuple(other.shape)} for {tuple(x.shape)}"
            assert_close(found, run(**{**inputs, given: other.expand(x.shape).clone()}))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize(("name", "given"), [x for x in ALL if x != ("hashes", "x")])  # rotations round too
def test_another_dtype_is_refused_or_rounds_and_nothing_else(name, given, dtype):
    run, inputs, _ = CASES[name]
    inputs = in_precision(inputs, dtype)
    x = inputs[given]
    floating = (torch.float64, torch.float32, torch.bfloat16)
    whole = (torch.int64, torch.int32, torch.int8)
    for other in set(floating if x.is_floating_point() else whole) - {x.dtype}:
        try:
            found = run(**{**inputs, given: x.to(other)})
        except REFUSALS:
            continue
        expected = run(**{**inputs, given: x.to(other).to(x.dtype)})
        assert_close(found, expected, rtol=2e-2, atol=2e-2, check_dtype=False)  # roundings of bfloat16


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("channels", [2, D + 1])
def test_decays_of_some_channels_are_refused(channels, dtype):
    inputs = in_precision(CASES["delta"].inputs, dtype)
    inputs["log_decay"] = inputs["log_decay"][..., :1].expand(B, H, N, channels).clone()
    message = rf"decays of {channels} channels do not fit keys of {D}: give one|Type-check"
    with pytest.raises(REFUSALS, match=message):
        CASES["delta"].run(**inputs)


@pytest.mark.parametrize("other", ["float64", "shorter"])
def test_a_stream_of_sums_refuses_sums_of_another_dtype_or_shape(other):
    q, k, v = (normal(B, H, 1, D).float() for _ in range(3))
    with torch.no_grad():
        _, sums = advance(KernelInputs(q, k, FeatureKind.ELU), v, valid=None, before=None) or pytest.skip(
            "no kernels here"
        )
        S = sums.S.double() if other == "float64" else sums.S[:, :, :-1]
        with pytest.raises(ValueError, match="sums"):
            advance(KernelInputs(q, k, FeatureKind.ELU), v, valid=None, before=sums._replace(S=S))
