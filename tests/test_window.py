"""Laws of attention in a sliding window and in tiles: the formula, in every precision, on both tiers."""

from contextlib import nullcontext

import pytest
import torch
from torch.testing import assert_close

from subquad.ops.backends import using
from subquad.ops.native.library import missing
from subquad.ops.tile_attention import BACKENDS as TILES
from subquad.ops.window_attention import BACKENDS as WINDOWS
from subquad.ops.window_attention import window_attention
from subquad.patterns import CAUSAL, Blocks, Dilated, Fixed, Global, Local, Random, attend

SIDES = [(0, 0), (15, 0), (70, 70), (3, 9), (5000, 0)]


@pytest.fixture(params=["cpu", "parallel", "reference"])
def tier(request):
    """float32 on one backend after the other, as far as it is there."""
    if request.param == "cpu" and (reason := missing()):
        pytest.skip(reason)
    with nullcontext() if request.param == "cpu" else using(request.param):
        yield


def inputs(length, *, batch=2, heads=2, d=5, e=3, seed=1):
    generator = torch.Generator().manual_seed(seed)
    q, k = torch.randn(2, batch, heads, length, d, dtype=torch.float64, generator=generator)
    v = torch.randn(batch, length, heads, e, dtype=torch.float64, generator=generator).transpose(1, 2)
    return [x.requires_grad_() for x in (q, k, v)]


def dense(q, k, v, *, left, right, lengths):
    """The same over all pairs, with lse, and zeros for queries behind their row's length."""
    i = torch.arange(q.shape[2])
    d = i[:, None] - i
    seen = ((d <= left) & (d >= -right)).expand(len(q), 1, -1, -1)
    real = torch.ones(len(q), 1, q.shape[2], dtype=torch.bool)
    if lengths is not None:
        real = (i < lengths[:, None])[:, None]
        seen = seen & real[..., None] & real[:, :, None]
    scores = (q @ k.mT * q.shape[3] ** -0.5).masked_fill(~seen, -1e300)
    return scores.softmax(-1).masked_fill(~seen, 0) @ v, scores.logsumexp(-1).masked_fill(~real, 0), real


def outputs_and_gradients(found, x):
    """Of outputs and finite lse, both of which the loss takes in."""
    out, lse = found
    weight = torch.linspace(-1, 1, out.numel(), dtype=torch.float64).view(out.shape)
    loss = (out * weight).sum() + (lse * weight[..., 0].cos()).sum()
    return [out, lse, *torch.autograd.grad(loss, x)]


def windowed(x, *, left, right, lengths, real):
    out, lse = window_attention(*x, left=left, right=right, lengths=lengths)
    return out, lse.masked_fill(~real, 0)


@pytest.mark.parametrize("lengths", [None, torch.tensor([130, 77])], ids=["whole", "padded"])
@pytest.mark.parametrize(("left", "right"), SIDES)
@pytest.mark.parametrize("length", [1, 130])
def test_a_window_is_softmax_over_its_keys(length, left, right, lengths):
    x = inputs(length)
    lengths = None if lengths is None else lengths.clamp(max=length)
    *exact, real = dense(*x, left=left, right=right, lengths=lengths)
    found = windowed(x, left=left, right=right, lengths=lengths, real=real)
    assert_close(outputs_and_gradients(found, x), outputs_and_gradients(exact, x))


@pytest.mark.usefixtures("tier")
@pytest.mark.parametrize("width", [5, 16, 64], ids="d={}".format)
@pytest.mark.parametrize("lengths", [None, torch.tensor([201, 66])], ids=["whole", "padded"])
@pytest.mark.parametrize(("left", "right"), SIDES)
def test_float32_is_float64_but_for_rounding(left, right, lengths, width):
    x = inputs(201, d=width, e=width + 4)
    *exact, real = dense(*x, left=left, right=right, lengths=lengths)
    narrow = [t.detach().float().requires_grad_() for t in x]
    found = windowed(narrow, left=left, right=right, lengths=lengths, real=real)
    both = (outputs_and_gradients(y, z) for y, z in ((found, narrow), (exact, x)))
    for rounded, value in zip(*both, strict=True):  # sums of up to 200 rounding errors of float32
        assert_close(rounded.double(), value, rtol=1e-4, atol=2e-5)


@pytest.mark.usefixtures("tier")
@pytest.mark.parametrize("lengths", [None, torch.tensor([201, 66])], ids=["whole", "padded"])
@pytest.mark.parametrize("shift", [-300.0, 300.0])
def test_scores_may_leave_the_range_of_exponentials(shift, lengths):
    """Of some queries and not of others: a score moves by what the last column of its query says."""
    q, k, v = (x.detach() for x in inputs(201, d=4))
    moved = torch.zeros_like(q[..., :1])
    moved[:, :, 90:] = shift * 5**0.5
    x = [torch.cat([q, moved], -1), torch.cat([k, torch.ones_like(moved)], -1), v]
    exact = window_attention(*x, left=15, right=0, lengths=lengths)
    found = window_attention(*(t.float() for t in x), left=15, right=0, lengths=lengths)
    for rounded, value in zip(found, exact, strict=True):
        assert_close(rounded.double(), value, rtol=1e-4, atol=1e-4)
    *expected, real = dense(*x, left=15, right=0, lengths=lengths)
    assert_close((exact[0], exact[1].masked_fill(~real, 0)), tuple(expected))


def test_queries_behind_the_length_see_nothing():
    x = inputs(9)
    out, lse = window_attention(*x, left=2, right=2, lengths=torch.tensor([9, 4]))
    assert (out[1, :, 4:] == 0).all()
    assert (lse[1, :, 4:] == -torch.inf).all()


def test_keys_behind_the_length_are_never_read():
    q, k, v = (x.detach() for x in inputs(100))
    lengths = torch.tensor([100, 40])
    before, _ = window_attention(q, k, v, left=5, right=5, lengths=lengths)
    k[1, :, 40:], v[1, :, 40:] = 1e3, 1e3
    after, _ = window_attention(q, k, v, left=5, right=5, lengths=lengths)
    assert torch.equal(before, after)


def test_scores_beyond_any_exponential_are_fine_in_a_window():
    q, k, v = inputs(70)
    out, _ = window_attention(1e4 * q, 1e4 * k, torch.ones_like(v), left=6, right=3, lengths=None)
    assert_close(out, torch.ones_like(v))


@pytest.mark.usefixtures("tier")
@pytest.mark.parametrize("lengths", [None, torch.tensor([130, 77])], ids=["whole", "padded"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_is_float32_but_for_rounding_of_what_goes_in_and_out(dtype, lengths):
    wide = [x.detach().to(dtype).float().requires_grad_() for x in inputs(130, heads=9)]
    narrow = [x.detach().to(dtype).requires_grad_() for x in wide]
    found = []
    for x in (wide, narrow):
        out, lse = window_attention(*x, left=20, right=3, lengths=lengths)
        seen = lse.masked_fill(lse == -torch.inf, 0)
        loss = (out.float() * out.detach().float()).sum() + seen.sum()
        found.append([out, lse, *torch.autograd.grad(loss, x)])
    assert found[1][1].dtype == torch.float32
    assert_close(found[1][1], found[0][1])
    for exact, rounded in zip(*found, strict=True):  # gradients hear of the outputs as they were rounded
        assert_close(rounded.float(), exact.float(), rtol=0.03, atol=0.03)


PATTERNS = [
    Local(20) | Global(2, last=3) | Random(3),  # a window, whole rows and columns, single pairs
    Blocks(Local(1) | Global(1) | Random(2), 16),  # keys in blocks
    Blocks(Local(0) | Random(2), 7),  # that end in the middle of one
    Dilated(40, 2),  # queries and keys of a residue, many of whose pairs are hidden
    Fixed(32, 8) & CAUSAL,
]


@pytest.mark.usefixtures("tier")
@pytest.mark.parametrize("lengths", [None, [600, 93]], ids=["whole", "padded"])
@pytest.mark.parametrize("width", [5, 32], ids="d={}".format)
@pytest.mark.parametrize("pattern", PATTERNS, ids=repr)
def test_tiles_in_float32_are_float64_but_for_rounding(pattern, width, lengths):
    x = inputs(600, batch=1 if lengths is None else 2, heads=1, d=width, e=width)
    valid = None if lengths is None else torch.arange(600) < torch.tensor(lengths)[:, None]
    real = [600] if lengths is None else lengths
    narrow = [t.detach().float().requires_grad_() for t in x]
    found = []
    for y in (x, narrow):
        out = attend(pattern, *y, valid=valid)
        out = torch.cat([row[:, :length] for row, length in zip(out, real, strict=True)], 1)
        found.append([out, *torch.autograd.grad((out * out.detach().cos()).sum(), y)])
    for value, rounded in zip(*found, strict=True):
        assert_close(rounded.double(), value, rtol=1e-4, atol=2e-5)


@pytest.mark.usefixtures("tier")
@pytest.mark.parametrize("pattern", PATTERNS[:3], ids=repr)
def test_scores_of_tiles_may_leave_the_range_of_exponentials(pattern):
    q, k, v = (x.detach() for x in inputs(600, batch=1, heads=1, d=4))
    narrow = [x.float().requires_grad_() for x in (30 * q, 10 * k, v)]
    x = [y.detach().double().requires_grad_() for y in narrow]
    exact = (x[0] @ x[1].mT / 2).masked_fill(~pattern.mask(600), -torch.inf).softmax(-1) @ x[2]
    both = (exact, x), (attend(pattern, *narrow, valid=None), narrow)
    found = ([out, *torch.autograd.grad((out * out.detach().cos()).sum(), y)] for out, y in both)
    for value, rounded in zip(*found, strict=True):  # scores of a thousand are rounded to some 1e-4
        assert_close(rounded.double(), value, rtol=1e-2, atol=1e-2)


@pytest.mark.usefixtures("tier")
@pytest.mark.parametrize("pattern", [Local(4) & CAUSAL, (Local(4) | Dilated(4, 4)) & CAUSAL], ids=repr)
def test_scores_out_of_range_round_no_other_tokens(pattern):
    q, k, v = torch.randn(3, 2, 2, 40, 8, generator=torch.Generator().manual_seed(0))
    large_q, large_k = q.clone(), k.clone()
    large_q[0, :, 30:] *= 200
    large_k[0, :, 30:] *= 200
    with torch.no_grad():
        before, after = attend(pattern, q, k, v, valid=None), attend(pattern, large_q, large_k, v, valid=None)
    assert torch.equal(before[0, :, :30], after[0, :, :30])
    assert torch.equal(before[1], after[1])


def test_what_is_known_of_a_pattern_in_inference_serves_training():
    q, k, v = inputs(70, e=5)
    pattern = Blocks(Local(1) | Global(1), 8)
    with torch.inference_mode():
        before = attend(pattern, q, k, v, valid=None)
    after = attend(pattern, q, k, v, valid=None)
    after.sum().backward()
    assert torch.equal(before, after)


@pytest.mark.parametrize("name", ["cpu", "parallel", "reference"])
@pytest.mark.parametrize(
    ("operator", "pattern"),
    [(WINDOWS, Local(4)), (TILES, Local(4) | Global(1))],
    ids=["window", "tiles"],
)
def test_the_backward_pass_keeps_the_backend_of_the_forward_pass(operator, pattern, name, monkeypatch):
    if name == "cpu" and missing() is not None:
        pytest.skip("no kernels were compiled")
    q, k, v = (x.detach().float().requires_grad_() for x in inputs(40, e=5))
    with using(name):
        out = attend(pattern, q, k, v, valid=None)
    served, backend = [], dict(operator.loaded)[name]
    backward = backend.backward
    monkeypatch.setattr(backend, "backward", lambda *given: served.append(name) or backward(*given))
    out.sum().backward()
    assert served == [name]
