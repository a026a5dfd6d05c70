"""Laws of the mechanisms with a sparse pattern, beyond the contract."""

import itertools
from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F
from torch.testing import assert_close

from subquad import Dims
from subquad.mechanisms import bigbird
from subquad.mechanisms.bigbird import BigBird
from subquad.mechanisms.local import LocalAttention
from subquad.mechanisms.longformer import LongformerAttention
from subquad.mechanisms.pattern import PatternAttention
from subquad.mechanisms.sparse_transformer import SparseTransformer
from subquad.mechanisms.star import StarAttention
from subquad.ops.shared.slots import newest
from subquad.patterns import Blocks, Global, Local
from subquad.testing.mechanism import causality, meaning, numerics, padding

DIMS = Dims(heads=2, head_dim=4)


def inputs(mechanism, n, *, batch=2, seed=1):
    generator = torch.Generator().manual_seed(seed)
    shape = (batch, mechanism.dims.heads, n, mechanism.dims.head_dim)
    return {
        name: torch.randn(shape, dtype=torch.float64, generator=generator) for name in mechanism.projections()
    }


def with_options(cls, **options):
    """The class with other options in its tests."""
    return type(cls.__name__, (cls,), {"traits": replace(cls.traits, tiny=options)})


@pytest.mark.parametrize("kind", ["strided", "fixed"])
@pytest.mark.parametrize("heads", ["merged", "split", "alternate"])
def test_both_kinds_match_their_definition(heads, kind):
    meaning.check_matches_definition(
        with_options(SparseTransformer, kind=kind, stride=4, columns=1, heads=heads)
    )


@pytest.mark.parametrize("heads", ["merged", "split", "alternate"])
@pytest.mark.parametrize("layer", [0, 1])
@pytest.mark.parametrize("causal", [True, False])
def test_heads_take_turns_at_sub_blocks(heads, layer, causal):
    l, c, n = 7, 2, 24
    mechanism = SparseTransformer(
        Dims(heads=5, head_dim=4, layer=layer), causal=causal, stride=l, columns=c, subblocks=3, heads=heads
    )
    seen = mechanism.pattern.mask(n).expand(5, n, n)
    for head, i, j in itertools.product(range(5), range(n), range(n)):
        turn = head - 3 if heads == "split" else head  # the first three heads of five see A1
        first = i // l == j // l
        second = j % l in {0: (5, 6), 1: (3, 4), 2: (1, 2)}[turn % 3]
        expected = {
            "merged": first or second,
            "split": second if head >= 3 else first,
            "alternate": second if layer else first,
        }[heads]
        assert seen[head, i, j] == (expected and (j <= i or not causal)), (head, i, j)
    x = {name: tensor.double() for name, tensor in inputs(mechanism, n).items()}
    assert_close(mechanism.double()(**x), mechanism.definition(**x))


@pytest.mark.parametrize(
    "check",
    [
        meaning.check_matches_definition,
        meaning.check_shapes_and_dtypes,
        numerics.check_half_precision,
        padding.check_padding_is_invisible,
        causality.check_stream_equals_sequence,
        causality.check_causal_by_gradients,
    ],
)
def test_sub_blocks_keep_the_contract(check):
    check(with_options(SparseTransformer, stride=5, columns=2, subblocks=2))


def test_strides_keep_the_contract_with_padding():
    padding.check_padding_is_invisible(
        with_options(SparseTransformer, kind="strided", stride=4, columns=1, heads="split")
    )


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["strided", "fixed"])  # fixed: where rows see nothing
def test_split_heads_stream(kind):
    causality.check_stream_equals_sequence(
        with_options(SparseTransformer, kind=kind, stride=4, columns=1, heads="split")
    )


@pytest.mark.parametrize("expr", ["Strided(5) & Local(11) | Columns(1)", "PerHead(Dilated(2, 3), Ring(2))"])
def test_any_expression_matches_its_mask(expr):
    mechanism = PatternAttention(DIMS, causal=False, expr=expr).double()
    x = inputs(mechanism, 24)
    valid = torch.rand(2, 24, generator=torch.Generator().manual_seed(3)) < 0.6
    keep = valid[:, None, :, None]
    assert_close(mechanism(**x, valid=valid) * keep, mechanism.definition(**x, valid=valid) * keep)


def test_layers_alternate_between_the_two_steps():
    first, second, third = (
        SparseTransformer(replace(DIMS, layer=layer), causal=True, stride=5, columns=2, heads="alternate")
        for layer in (0, 1, 2)
    )
    merged = SparseTransformer(DIMS, causal=True, stride=5, columns=2)
    assert first.pattern == third.pattern != second.pattern
    assert_close(first.pattern.mask(23) | second.pattern.mask(23), merged.pattern.mask(23))


def test_split_heads_see_the_two_steps():
    mechanism = SparseTransformer(
        replace(DIMS, heads=5), causal=True, kind="strided", stride=4, columns=1, heads="split"
    )
    seen = mechanism.pattern.mask(13)
    assert seen.shape == (5, 13, 13)
    assert_close(seen[2], torch.ones(13, 13, dtype=torch.bool).tril().triu(-4))
    assert seen[3, 12].nonzero().flatten().tolist() == [0, 4, 8, 12]
    with pytest.raises(ValueError, match="two heads"):
        SparseTransformer(replace(DIMS, heads=1), causal=True, heads="split")


@pytest.mark.parametrize("blocks", [16, 64, 512])
def test_random_blocks_coincide_with_those_seen_anyway_as_often_as_the_page_says(blocks):
    anyway = (Local(1) | Global(1, last=1)).mask(blocks)
    patterns = [BigBird(DIMS, causal=False, block=1, seed=seed).pattern for seed in range(20)]
    added = torch.stack([(pattern.mask(blocks) & ~anyway).sum(1)[1:-1] for pattern in patterns])
    assert f"{added.double().mean():.1f} of 3 among {blocks}" in (bigbird.__doc__ or "")
    nothing = (added == 0).double().mean()
    assert 1 / 60 < nothing < 1 / 40 if blocks == 16 else nothing < 1 / 1000


def test_a_token_reaches_any_earlier_one_in_two_hops():
    for kind in ("strided", "fixed"):
        mechanism = SparseTransformer(DIMS, causal=True, kind=kind, stride=5, columns=1, heads="merged")
        one = mechanism.pattern.mask(40).long()
        twice = (one @ one) > 0
        expected = torch.ones(40, 40, dtype=torch.bool).tril()
        if kind == "fixed":  # by way of a summary, which a block gets at its end
            i, j = torch.arange(40)[:, None] // 5, torch.arange(40) // 5
            expected = expected & ((i > j) | (i == j))
        assert_close(twice, expected)


def test_a_longformer_with_wide_windows_and_one_kind_of_projections_is_softmax():
    mechanism = LongformerAttention(DIMS, causal=False, window=48, globals=2)
    x = inputs(mechanism, 24)
    q, k, v = x["q"], x["k"], x["v"]
    assert_close(mechanism(q, k, v, q, k, v), F.scaled_dot_product_attention(q, k, v))


def test_global_rows_of_a_longformer_have_projections_of_their_own():
    mechanism = LongformerAttention(DIMS, causal=False, window=4, globals=2)
    x = inputs(mechanism, 24)
    out = mechanism(**x)
    whole = F.scaled_dot_product_attention(x["q_global"], x["k_global"], x["v_global"])
    assert_close(out[:, :, :2], whole[:, :, :2])
    other = {name: torch.zeros_like(t) if name.endswith("global") else t for name, t in x.items()}
    assert_close(mechanism(**other)[:, :, 2:], out[:, :, 2:])


def test_the_weights_of_a_longformer_sum_to_one():
    mechanism = LongformerAttention(DIMS, causal=False, window=4, globals=2)
    x = inputs(mechanism, 24)
    ones = torch.ones_like(x["v"])
    assert_close(mechanism(**{**x, "v": ones, "v_global": ones}), ones)


def big_bird(**options):
    return BigBird(DIMS, causal=False, **{"block": 3, "random": 2, **options})


def test_bigbird_counts_no_block_twice_in_training_or_evaluation():
    """Hugging Face's counts block 0 once for itself and once for each random block, in evaluation."""
    mechanism = big_bird(random=12)  # draws nearly every block, the first and the window's among them
    x = inputs(mechanism, 36)
    exact = F.scaled_dot_product_attention(x["q"], x["k"], x["v"])
    assert_close(mechanism.train()(**x), exact)
    assert_close(mechanism.eval()(**x), exact)


def test_bigbird_is_as_sparse_after_a_short_batch_as_before():
    """Hugging Face's attends fully for ever after one batch too short for its blocks."""
    mechanism = big_bird()
    x = inputs(mechanism, 60)
    before = mechanism(**x)
    mechanism(**inputs(mechanism, 4))
    assert_close(mechanism(**x), before, rtol=0, atol=0)
    assert (before - F.scaled_dot_product_attention(x["q"], x["k"], x["v"])).norm() > 0.1


def test_bigbird_draws_over_the_whole_length():
    """An older plan of Hugging Face's drew from the first 1,024 tokens alone."""
    pattern = big_bird().pattern
    assert isinstance(pattern, Blocks)
    seen = pattern.pattern.mask(400)
    far = (torch.arange(400)[:, None] - torch.arange(400)).abs() > 1
    assert (seen & far)[1:-1, 200:-1].sum() > 300


def test_bigbird_draws_anew_for_each_layer_and_seed():
    first, layer, seed = (
        BigBird(replace(DIMS, layer=number), causal=False, seed=s, block=3)
        for number, s in ((0, 0), (1, 0), (0, 1))
    )
    masks = [mechanism.pattern.mask(90) for mechanism in (first, layer, seed)]
    assert len({mask.numpy().tobytes() for mask in masks}) == 3


def test_bigbird_draws_anew_when_asked_and_saves_what_it_drew():
    mechanism, other = big_bird(), big_bird()
    x = inputs(mechanism, 60)
    before = mechanism(**x)
    mechanism.redraw(generator=torch.Generator().manual_seed(3))
    assert (mechanism(**x) - before).norm() > 0.1
    assert_close(mechanism(**x), mechanism.definition(**x))
    other.load_state_dict(mechanism.state_dict())
    assert_close(other(**x), mechanism(**x), rtol=0, atol=0)


def test_bigbird_touches_no_global_generator():
    before = torch.get_rng_state()
    mechanism = big_bird()
    mechanism(**inputs(mechanism, 24))
    assert_close(torch.get_rng_state(), before, rtol=0, atol=0)


def test_a_star_of_one_is_its_value_and_of_two_is_softmax():
    mechanism = StarAttention(DIMS, causal=False)
    alone, two = inputs(mechanism, 1), inputs(mechanism, 2)
    assert_close(mechanism(**alone), alone["v"])
    assert_close(mechanism(**two), F.scaled_dot_product_attention(two["q"], two["k"], two["v"]))


def test_the_ring_of_a_star_closes_over_the_real_tokens():
    mechanism = StarAttention(DIMS, causal=False)
    x = inputs(mechanism, 12)
    valid = torch.arange(12).expand(2, -1) < 8
    out = mechanism(**x, valid=valid)
    changed = {**x, "v": x["v"].index_fill(2, torch.tensor([1]), 9.0)}  # the first satellite
    moved = (mechanism(**changed, valid=valid) - out).abs().amax((0, 1, 3)) > 1e-9
    assert moved.nonzero().flatten().tolist() == [0, 1, 2, 7]


def test_local_attention_remembers_just_its_window():
    mechanism = LocalAttention(DIMS, causal=True, width=3, dilation=2)
    x = inputs(mechanism, 24)
    _, state = mechanism.step(x["q"], x["k"], x["v"])
    j = newest(state.seen, 7)
    assert_close(j.sort().values, torch.arange(17, 24).expand(2, -1))
    assert_close(state.k, x["k"][:, :, j[0]])


@pytest.mark.parametrize(
    ("cls", "options"),
    [
        (LocalAttention, {"width": 0}),
        (LocalAttention, {"dilation": 0}),
        (LongformerAttention, {"window": 3}),
        (LongformerAttention, {"globals": 0}),
        (BigBird, {"window": 2}),
        (BigBird, {"block": 0}),
        (SparseTransformer, {"kind": "random"}),
        (SparseTransformer, {"heads": "both"}),
        (SparseTransformer, {"stride": 4, "columns": 5}),
        (SparseTransformer, {"stride": 4, "columns": 2, "subblocks": 3}),
        (SparseTransformer, {"stride": 4, "columns": 2, "subblocks": 0}),
        (SparseTransformer, {"kind": "strided", "subblocks": 2}),
        (StarAttention, {"width": 0}),
        (PatternAttention, {"expr": "Local(3) | Lokal(3)"}),
        (PatternAttention, {"expr": "PerHead(Local(1), Local(2), Local(3))"}),
    ],
    ids=str,
)
def test_impossible_options_are_refused(cls, options):
    with pytest.raises(ValueError):  # noqa: PT011 -- the messages differ
        cls(DIMS, causal=not cls.traits.bidirectional, **options)


def test_what_needs_the_end_has_no_causal_form():
    with pytest.raises(ValueError, match="last of its sequence"):
        PatternAttention(DIMS, causal=True, expr="Local(3) | Global(1, last=1)")
