"""Linear attention's Triton kernels against the reference in float64."""

from itertools import product

import pytest
import torch
from kernel_samples import assert_near, compare, drawn, holes, inputs_of

from subquad.mechanism import Dims
from subquad.mechanisms import kernel
from subquad.ops.backends import using
from subquad.ops.linear_attention import (
    FeatureKind,
    KernelInputs,
    LinearCall,
    advance,
    linear_attention,
    triton,
    triton_features,
    triton_inputs,
)
from subquad.ops.triton.launch import recorded
from subquad.registry import find

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
FORMS = list(product(FeatureKind, (True, False)))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("kind", "causal"), FORMS)
def test_outputs_and_gradients_are_those_of_the_reference(kind, causal, dtype):
    q, k, v, W = inputs_of(kind)
    valid = holes(2, 75)
    k, v = (x * valid[:, None, :, None] for x in (k, v))
    compare(kind, (q, k, v, W), valid, causal=causal, dtype=dtype)


@pytest.fixture
def short_segments(monkeypatch):
    """So that some tokens make several."""
    monkeypatch.setattr(triton_inputs, "SEGMENT", 64)


@pytest.mark.parametrize("n", [1, 64, 65, 200])
@pytest.mark.parametrize(("kind", "causal"), FORMS)
def test_lengths_beside_those_of_tiles_and_segments(kind, causal, n, short_segments):
    compare(kind, inputs_of(kind, b=1, h=1, queries=n, keys=n, d=16, e=16, features=16), None, causal=causal)


@pytest.mark.parametrize("width", [3, 80])  # in blocks of 16 and 128
@pytest.mark.parametrize(("kind", "causal"), FORMS)
def test_widths(kind, causal, width):
    sizes = {"b": 1, "h": 1, "queries": 40, "keys": 40, "features": 33}
    dtype = torch.float16 if kind.exponential and width > triton.WIDEST_FLOAT32 else torch.float32
    compare(kind, inputs_of(kind, d=width, e=width, **sizes), None, causal=causal, dtype=dtype)


@pytest.mark.parametrize(("kind", "causal"), [x for x in FORMS if x[0] != FeatureKind.ELU])
def test_many_features(kind, causal):
    d = 16 if kind == FeatureKind.FAVOR else 150
    sizes = {"b": 1, "h": 1, "queries": 70, "keys": 70, "features": 150}
    compare(kind, inputs_of(kind, d=d, e=16, **sizes), None, causal=causal)


@pytest.mark.parametrize("kind", [kind for kind, causal in FORMS if not causal])
def test_queries_may_be_fewer_or_more_than_keys(kind):
    for queries, keys in ((70, 33), (33, 70)):
        inputs = inputs_of(kind, queries=queries, keys=keys)
        valid = holes(2, keys)
        q, k, v, W = inputs
        k, v = (x * valid[:, None, :, None] for x in (k, v))
        compare(kind, (q, k, v, W), valid, causal=False)


@pytest.mark.parametrize(("kind", "causal"), FORMS)
def test_what_stands_at_padding_is_not_read(kind, causal):
    """Where gradients of outputs at padding are zero, as they are behind a mask."""
    q, k, v, W = inputs_of(kind, h=1)
    valid = holes(2, 75)
    padding = ~valid[:, None, :, None]
    clean = [x.masked_fill(padding, 0).float() for x in (q, k, v)]
    others = torch.nan, torch.nan, torch.inf
    spoilt = [x.masked_fill(padding, other) for x, other in zip(clean, others, strict=True)]
    grad = drawn(*clean[2].shape, seed=9).float().masked_fill(padding, 0)

    def everything(inputs):
        q, k, v = inputs
        call = LinearCall(q, k, v, None if W is None else W.float(), valid, kind, causal)
        result = triton.forward(call)
        return (result.out.masked_fill(padding, 0), *triton.backward(grad, call, result))

    for found, expected in zip(everything(spoilt), everything(clean), strict=True):
        assert torch.equal(found, expected)


@pytest.mark.parametrize("name", ["linear", "performer"])
@pytest.mark.parametrize("form", ["bidirectional", "causal", "step"])
def test_mechanisms_leave_padding_to_the_kernels(name, form, monkeypatch):
    """Which mask it as they read: nothing passes over the inputs before, whatever stands there."""
    options = {"performer": {"features": 20}}.get(name, {})
    mechanism = find(name)(Dims(heads=2, head_dim=8), causal=form != "bidirectional", **options)
    valid = holes(2, 20)
    padding = ~valid[:, None, :, None]
    clean = [drawn(2, 2, 20, 8, seed=n).float().masked_fill(padding, 0) for n in range(3)]
    weights = drawn(2, 2, 20, 8, seed=9).float().masked_fill(padding, 0)

    def everything(inputs):
        leaves = [x.clone().requires_grad_(form != "step") for x in inputs]
        with using("triton"), torch.set_grad_enabled(form != "step"):
            if form == "step":
                first, state = mechanism.step(*(x[:, :, :1] for x in leaves), valid=valid[:, :1])
                rest, state = mechanism.step(*(x[:, :, 1:] for x in leaves), valid=valid[:, 1:], state=state)
                return torch.cat([first, rest], 2), *state
            out = mechanism(*leaves, valid=valid)
            return out.detach(), *torch.autograd.grad(out, leaves, weights)

    spoilt, expected = [x.masked_fill(padding, torch.nan) for x in clean], everything(clean)
    monkeypatch.delattr(kernel, "zero_padding")
    for found, wanted in zip(everything(spoilt), expected, strict=True):
        assert torch.equal(found, wanted)


@pytest.mark.parametrize("kind", [FeatureKind.FAVOR, FeatureKind.LOGS])
def test_no_key_drowns_those_before_it(kind, short_segments):
    q, k, v, W = inputs_of(kind, b=1, h=1, queries=100, keys=100)
    if kind == FeatureKind.LOGS:
        k[:, :, 40:] += 300
        k[:, :, 70] -= 150
    else:
        k[:, :, 40:] *= 6
    compare(kind, (q, k, v, W), None, causal=True)


@pytest.mark.parametrize(("kind", "causal"), FORMS)
@pytest.mark.parametrize("gradients", [False, True])
def test_launches_are_as_many_for_any_length(kind, causal, gradients):
    def launches(n):
        q, k, v = (torch.empty(2, 4, n, 64, dtype=torch.bfloat16, device="meta") for _ in range(3))
        W = q.new_empty(256, 64, dtype=torch.float32) if kind == FeatureKind.FAVOR else None
        call = LinearCall(q, k, v, W, None, kind, causal)
        with recorded(90) as found:
            result = triton.forward(call)
            if gradients:
                triton.backward(v, call, result)
        return [launch.kernel.__name__ for launch in found]

    assert launches(1024) == launches(2**17)


@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize("kind", [kind for kind, causal in FORMS if causal])
def test_a_stream_in_parts_is_the_whole(kind, in_place, short_segments):
    q, k, v, W = inputs_of(kind, b=1, queries=74, keys=74)
    valid = holes(2, 74)[:1]
    q, k, v = q.float(), *((x * valid[:, None, :, None]).float() for x in (k, v))
    W = None if W is None else W.float()
    whole = linear_attention(KernelInputs(q, k, kind, W), v, valid=valid, causal=True)
    parts, sums = [], None
    with using("triton"), torch.no_grad():
        for start, end in ((0, 1), (1, 1), (1, 2), (2, 72), (72, 73), (73, 74)):
            part, before = KernelInputs(q[:, :, start:end], k[:, :, start:end], kind, W), sums
            values, seen = v[:, :, start:end], valid[:, start:end]
            out, sums = advance(part, values, valid=seen, before=before, in_place=in_place)
            same = before is not None and sums.S is before.S
            assert same == (in_place and before is not None and end == start + 1)
            parts.append(out)
    assert_near([torch.cat(parts, 2)], [whole.double()])


def test_many_keys_are_summed_in_a_bounded_number_of_parts():
    x = torch.empty(1, 1, 2**20, 16, device="meta")
    call = LinearCall(x, x, x, None, None, FeatureKind.ELU, False)
    inputs = triton_inputs.Inputs(call, triton_features.CONFIGS)
    assert inputs.segments(2**20) <= triton_inputs.PARTS
