"""Laws of the low-rank and pooling mechanisms that are no other mechanism's."""

import sys
from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F
from torch.testing import assert_close
from weights import weights

from subquad import Dims
from subquad.mechanisms.linformer import Linformer
from subquad.mechanisms.nystromformer import Nystromformer, pseudo_inverse
from subquad.mechanisms.poolingformer import Poolingformer
from subquad.mechanisms.svd import SvdAttention
from subquad.ops import banded_attention
from subquad.ops.shared import precision
from subquad.testing.mechanism import causality, meaning, padding

DIMS = Dims(heads=2, head_dim=4, max_len=24)
ALL = [Linformer, Nystromformer, Poolingformer, SvdAttention]


def tokens(length=24, *, batch=2, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    shape = (batch, 2, length, 4)
    return [torch.randn(shape, dtype=torch.float64, generator=generator).to(dtype) for _ in range(3)]


VARIANTS = [
    (Linformer, {"rank": 8, "sharing": "none"}),
    (Linformer, {"rank": 8, "sharing": "key-value"}),
    (Linformer, {"rank": 8, "sharing": "layers"}),
    (Linformer, {"rank": 1024, "projection": "mean"}),  # windows of 4, for the checks' 4,096
    (Linformer, {"rank": 1024, "projection": "max"}),
    (Linformer, {"rank": 700, "projection": "convolution"}),
    (Linformer, {"rank": 700, "projection": "convolution", "sharing": "none"}),
    (Nystromformer, {"landmarks": 1, "kernel": 0}),
    (Nystromformer, {"landmarks": 12, "kernel": 33}),
    (Nystromformer, {"landmarks": 30, "iterations": 2, "kernel": 1}),
    (Poolingformer, {"near": 0, "far": 3, "kernel": 4, "stride": 4, "pooling": "max"}),
    (Poolingformer, {"near": 3, "far": 5, "kernel": 5, "stride": 1, "pooling": "convolution"}),
    (Poolingformer, {"near": 30, "far": 6, "kernel": 4, "stride": 3, "second": "y"}),
    (
        Poolingformer,
        {"near": 2, "far": 60, "kernel": 3, "stride": 2, "second": "y", "pooling": "convolution"},
    ),
    (Poolingformer, {"near": 128, "far": 512, "kernel": 40, "stride": 30}),
    (SvdAttention, {"rank": 1}),
    (SvdAttention, {"rank": 15}),
]
CHECKS = [
    meaning.check_matches_definition,
    meaning.check_gradients_reach_everything,
    padding.check_padding_is_invisible,
    padding.check_all_padding_gives_zeros,
    causality.check_causal_by_resampling,
    causality.check_causal_by_gradients,
]


APPLICABLE = [
    (cls, options, check)
    for cls, options in VARIANTS
    for check in CHECKS
    if cls.traits.causal or check.__module__ != causality.__name__
]


@pytest.mark.parametrize(("cls", "options", "check"), APPLICABLE)
def test_every_option_keeps_the_contract(cls, options, check):
    check(type(cls.__name__, (cls,), {"traits": replace(cls.traits, tiny=options)}))


@pytest.mark.parametrize("length", [0, 1, 2, 24])
@pytest.mark.parametrize("cls", ALL)
def test_any_length_will_do_at_the_defaults(cls, length):
    q, k, v = tokens(length)
    mechanism = cls(DIMS, causal=False).double()
    assert_close(mechanism(q, k, v), mechanism.definition(q, k, v))
    valid = torch.zeros(2, length, dtype=torch.bool)
    assert not mechanism(q, k, v, valid=valid).any()


@pytest.mark.parametrize("cls", ALL)
def test_autocast_does_not_narrow_the_sums(cls):
    mechanism = cls(DIMS, causal=False, **({"rank": 8} if cls is Linformer else cls.traits.tiny))
    inputs = tokens(dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = mechanism(*inputs)
    assert_close(found, mechanism(*inputs), rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("cls", ALL)
def test_only_inputs_and_outputs_are_rounded_to_half_precision(cls, dtype):
    half = cls(DIMS, causal=False, **({"rank": 8} if cls is Linformer else cls.traits.tiny)).to(dtype)
    inputs = tokens(dtype=dtype)
    found = half(*inputs)
    assert_close(found, half.float()(*(x.float() for x in inputs)).to(dtype), rtol=0, atol=0)


@pytest.mark.parametrize("cls", [Linformer, Nystromformer, SvdAttention])
def test_weights_have_the_rank_that_was_requested(cls):
    q, k, _ = tokens()
    options = {"landmarks": 6, "kernel": 0} if cls is Nystromformer else {"rank": 6}
    values = torch.linalg.svdvals(weights(cls(DIMS, causal=False, **options).double(), q, k, width=4))
    assert (values[..., 5] > 1e-9).all()
    assert (values[..., 6:] < 1e-9).all()


@pytest.mark.parametrize("options", [{"rank": 0}, {"rank": 8, "sharing": "head"}, {"projection": "conv"}])
def test_linformer_refuses_options_without_a_meaning(options):
    with pytest.raises(ValueError, match=r"'linformer': (rank|sharing|projection) must be"):
        Linformer(DIMS, causal=False, **options)


def test_linformer_with_identities_is_softmax_attention():
    mechanism = Linformer(DIMS, causal=False, rank=24).double()
    mechanism.load_state_dict(dict.fromkeys("EF", torch.eye(24)[None]))
    q, k, v = tokens()
    assert_close(mechanism(q, k, v), F.scaled_dot_product_attention(q, k, v))


def test_linformer_without_a_longest_sequence_says_what_to_set():
    with pytest.raises(ValueError, match=r"'linformer' has weights per position: set Dims.max_len"):
        Linformer(Dims(heads=2, head_dim=4), causal=False)


@pytest.mark.parametrize("projection", ["linear", "mean", "max", "convolution"])
def test_linformer_refuses_more_tokens_than_it_was_built_for(projection):
    mechanism = Linformer(DIMS, causal=False, projection=projection).double()
    with pytest.raises(ValueError, match=r"at most 24 tokens and got 25, padding included: set Dims.max_len"):
        mechanism(*tokens(25))


@pytest.mark.parametrize(
    ("sharing", "matrices"), [("none", 4), ("heads", 2), ("key-value", 1), ("layers", 1)]
)
def test_linformer_has_as_many_projections_as_are_not_shared(sharing, matrices):
    mechanism = Linformer(DIMS, causal=False, rank=8, sharing=sharing)
    assert sum(p.numel() for p in mechanism.parameters()) == matrices * 8 * 24


def test_linformer_ties_layers_only_where_they_share():
    for sharing, same in (("layers", True), ("key-value", False)):
        first, later = (Linformer(DIMS, causal=False, rank=8, sharing=sharing) for _ in range(2))
        later.tie(first)
        assert (later.E is first.E) == same


def test_iterations_converge_to_the_pseudo_inverse_of_each_matrix():
    q, k, _ = tokens(6)
    A = (3 * q @ k.mT).softmax(-1)
    assert_close(pseudo_inverse(A, iterations=40), torch.linalg.pinv(A), rtol=1e-6, atol=1e-6)


def test_nystromformer_is_exact_for_rows_no_longer_than_its_landmarks():
    mechanism = Nystromformer(DIMS, causal=False, landmarks=12, iterations=40, kernel=0).double()
    q, k, v = tokens()
    valid = torch.arange(24).expand(2, -1) % 3 == torch.tensor([[0], [2]])  # 8 real tokens
    expected = F.scaled_dot_product_attention(q, k, v, attn_mask=valid[:, None, None])
    found = mechanism(q, k, v, valid=valid)
    assert_close(found[:, :, valid[0]][:1], expected[:, :, valid[0]][:1], rtol=1e-5, atol=1e-5)


def test_nystromformers_neighbours_do_not_set_its_norms():
    """The largest norm of the batch would change six iterations; here another row is 1,000 times as large."""
    mechanism = Nystromformer(DIMS, causal=False, landmarks=6).double()
    q, k, v = tokens()
    beside = [torch.cat([x[:1], 1000 * x[1:]]) for x in (q, k, v)]
    assert_close(mechanism(*beside)[:1], mechanism(q[:1], k[:1], v[:1]), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kernel", [-1, 2, 32])
def test_nystromformer_refuses_a_kernel_without_a_middle(kernel):
    with pytest.raises(ValueError, match=f"kernel must be odd, or 0 for none, not {kernel}"):
        Nystromformer(DIMS, causal=False, kernel=kernel)


@pytest.mark.parametrize("causal", [False, True])
def test_poolingformer_without_pooling_is_the_sum_of_two_windows(causal):
    mechanism = Poolingformer(DIMS, causal=causal, near=3, far=9, kernel=1, stride=1).double()
    q, k, v = tokens()
    distance = torch.arange(24)[:, None] - torch.arange(24)
    expected = torch.zeros_like(v)
    for width in (3, 9):
        seen = (distance.abs() <= width) & ((distance >= 0) | (not causal))
        expected = expected + F.scaled_dot_product_attention(q, k, v, attn_mask=seen)
    assert_close(mechanism(q, k, v), expected)


@pytest.mark.parametrize("pooling", ["mean", "max", "convolution"])
def test_poolingformer_sees_nothing_beyond_its_far_window(pooling):
    mechanism = Poolingformer(DIMS, causal=False, near=1, far=6, kernel=3, stride=2, pooling=pooling).double()
    q, k, v = tokens()
    v.requires_grad_()
    (gradient,) = torch.autograd.grad(mechanism(q, k, v)[:, :, 12].sum(), v)
    seen = gradient.abs().sum((0, 1, 3)).nonzero().flatten()
    assert seen.min() >= 6
    assert seen.max() <= 18
    assert len(seen) > 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kernel": 2, "stride": 3}, "would leave tokens out"),
        ({"far": 3}, "far must be at least kernel - 1 = 4, not 3"),
        ({"near": -1}, "near must be at least 0"),
        ({"pooling": "average"}, "pooling must be one of mean, max, convolution"),
        ({"second": "z"}, "second must be one of x, y"),
    ],
)
def test_poolingformer_refuses_options_without_a_meaning(options, message):
    with pytest.raises(ValueError, match=message):
        Poolingformer(DIMS, causal=False, **options)


def test_no_matrix_of_its_rank_is_nearer_to_softmax_attention_than_svds():
    q, k, _ = tokens()
    A = (q @ k.mT / 2).softmax(-1)
    svd = SvdAttention(DIMS, causal=False, rank=6).double()
    error = (weights(svd, q, k, width=4) - A).flatten(2).norm(dim=-1)
    assert_close(error, torch.linalg.svdvals(A)[..., 6:].norm(dim=-1))
    for other in (
        Nystromformer(DIMS, causal=False, landmarks=6, kernel=0),
        Linformer(DIMS, causal=False, rank=6),
    ):
        assert (error < (weights(other.double(), q, k, width=4) - A).flatten(2).norm(dim=-1)).all()


def test_svd_has_gradients_where_singular_values_coincide():
    q, k, v = (x.requires_grad_() for x in tokens())
    out = SvdAttention(DIMS, causal=False, rank=6).double()(q * 0, k, v)
    for gradient in torch.autograd.grad(out.square().sum(), (q, k, v)):
        assert gradient.isfinite().all()


BY_HEADS = [(Linformer, {"rank": 6, "sharing": "none"}), (Nystromformer, {"landmarks": 6, "kernel": 3})]


@pytest.mark.parametrize("gradients", [False, True])
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize(("cls", "options"), BY_HEADS)
def test_heads_taken_apart_in_half_precision_give_what_they_give_together(
    cls, options, padded, gradients, monkeypatch
):
    mechanism = cls(DIMS, causal=False, **options)
    inputs = [x.bfloat16().requires_grad_(gradients) for x in tokens()]
    wider = [x.detach().float().requires_grad_(gradients) for x in inputs]
    valid = (torch.arange(24) % 5 > 0).expand(2, -1) if padded else None
    monkeypatch.setattr(precision, "MAX_ELEMENTS", 1)  # a head at a time
    with torch.set_grad_enabled(gradients):
        apart, together = mechanism(*inputs, valid=valid), mechanism(*wider, valid=valid)
    assert_close(apart, together.bfloat16(), rtol=0, atol=0)
    if gradients:
        found, expected = (
            torch.autograd.grad(x.float().sum(), y) for x, y in ((apart, inputs), (together, wider))
        )
        for x, y in zip(found, expected, strict=True):
            assert_close(x.float(), y, rtol=2**-7, atol=1e-6)  # one rounding to bfloat16


@pytest.mark.parametrize(("cls", "options"), BY_HEADS)
def test_heads_of_long_sequences_are_taken_apart(cls, options, monkeypatch):
    mechanism, inputs = cls(DIMS, causal=False, **options).double(), tokens()
    together = mechanism(*inputs)
    monkeypatch.setattr(precision, "MAX_ELEMENTS", 1)
    monkeypatch.setattr(precision, "LARGE", 1)
    with torch.no_grad():
        assert_close(mechanism(*inputs), together)


@pytest.mark.parametrize("gradients", [True, False])
@pytest.mark.parametrize("stride", [1, 2, 5])
@pytest.mark.parametrize(("before", "after"), [(0, 0), (3, 0), (4, 7), (11, 2), (40, 40)])
@pytest.mark.parametrize("length", [1, 7, 30])
def test_a_band_sees_what_a_dense_mask_would(length, before, after, stride, gradients, monkeypatch):
    monkeypatch.setattr(
        sys.modules[banded_attention.__module__], "MAX_ELEMENTS", 1
    )  # a chunk at a time, without gradients
    q, k, v = tokens(length)
    k, v = k[:, :, ::stride], v[:, :, ::stride]
    i, first = torch.arange(length)[:, None], torch.arange(0, length, stride)
    last = (first + stride).clamp(max=length) - 1
    seen = (first >= i - before) & (last <= i + after)
    with torch.set_grad_enabled(gradients):
        found = banded_attention(q, k, v, last=last.expand(2, -1), stride=stride, before=before, after=after)
    assert_close(found, F.scaled_dot_product_attention(q, k, v, attn_mask=seen))
