"""Laws of the kernel family that are no other mechanism's."""

import pytest
import torch
from torch.testing import assert_close

from subquad import Dims, build

MEMBERS = [("linear", {}), ("performer", {"features": 16})]


def tokens(length, *, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(1, 2, length, 4, generator=generator).to(dtype) for _ in range(3)]


@pytest.mark.parametrize(("name", "options"), MEMBERS)
def test_the_state_is_as_large_after_64000_tokens_as_after_1000(name, options):
    mechanism = build(name, Dims(heads=2, head_dim=4), causal=True, **options)
    state, shapes, finite = None, [], True
    with torch.inference_mode():
        for part in zip(*(x.split(1000, dim=2) for x in tokens(64_000)), strict=True):
            out, state = mechanism.step(*part, state=state)
            shapes.append([x.shape for x in state])
            finite = finite and bool(out.isfinite().all())
    assert shapes[-1] == shapes[0]
    assert finite


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize(("name", "options"), MEMBERS)
def test_autocast_does_not_narrow_the_sums(name, options, causal):
    mechanism = build(name, Dims(heads=2, head_dim=4), causal=causal, **options)
    inputs = tokens(100)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = mechanism(*inputs)
    assert_close(found, mechanism(*inputs), rtol=0, atol=0)


def test_elu_features_of_very_negative_queries_do_not_vanish():
    q, k, v = tokens(20)
    out = build("linear", Dims(heads=2, head_dim=4), causal=True)(q - 40, k - 40, v)
    assert out.any(-1).all()
