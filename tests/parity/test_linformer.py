"""Linformer against two independent implementations, weights copied."""

import pytest
import torch
from torch.testing import assert_close

from subquad.nn.multihead import MultiheadAttention

theirs = pytest.importorskip("linformer.linformer")
LENGTH, RANK, DIM, HEADS = 12, 5, 8, 2


def tokens(length=LENGTH, *, seed=0):
    return torch.randn(2, length, DIM, generator=torch.Generator().manual_seed(seed))


def ours(*, sharing, projection="linear", q, k, v, E, F=None, out):
    """Our layer with their weights."""
    layer = MultiheadAttention(
        DIM,
        HEADS,
        "linformer",
        max_len=LENGTH,
        rank=RANK if projection == "linear" else LENGTH // 3,
        sharing=sharing,
        projection=projection,
    )
    weights = {"in_proj_weight": torch.cat([q, k, v]), "mechanism.E": E}
    layer.out_proj.load_state_dict(out.state_dict())
    layer.load_state_dict(layer.state_dict() | weights | ({} if F is None else {"mechanism.F": F}))
    return layer


@pytest.mark.parametrize("length", [LENGTH, 7, 1])
def test_linformer_0_2_3_agrees_at_its_length_and_below(length):
    other = theirs.LinformerSelfAttention(DIM, LENGTH, k=RANK, heads=HEADS)
    layer = ours(
        sharing="heads",
        q=other.to_q.weight,
        k=other.to_k.weight,
        v=other.to_v.weight,
        E=other.proj_k.T[None],
        F=other.proj_v.T[None],
        out=other.to_out,
    )
    x = tokens(length)
    assert_close(layer(x, x, x)[0], other(x))


def test_linformer_0_2_3_agrees_in_cross_attention():
    other = theirs.LinformerSelfAttention(DIM, LENGTH, k=RANK, heads=HEADS)
    layer = ours(
        sharing="heads",
        q=other.to_q.weight,
        k=other.to_k.weight,
        v=other.to_v.weight,
        E=other.proj_k.T[None],
        F=other.proj_v.T[None],
        out=other.to_out,
    )
    x, context = tokens(5), tokens(9, seed=1)
    assert_close(layer(x, context, context)[0], other(x, context=context))


def test_linformer_0_2_3_ignores_the_mask_it_is_given():
    """It swallows any keyword. We are right: what stands at padding must not change the rest."""
    other = theirs.LinformerSelfAttention(DIM, LENGTH, k=RANK, heads=HEADS)
    x, mask = tokens(), torch.arange(LENGTH).expand(2, -1) < 8
    assert_close(other(x, mask=mask), other(x), rtol=0, atol=0)


def pytorch_layer(sharing, *, method="learnable", causal=False):
    package = pytest.importorskip("linformer_pytorch.linformer_pytorch")
    torch.manual_seed(0)
    dim = DIM // HEADS
    rank = RANK if method == "learnable" else LENGTH // 3
    mask = package.gen_causal_mask(LENGTH, rank) if causal else None
    layer = package.MHAttention(
        LENGTH, dim, DIM, rank, HEADS, 0.0, "C0", sharing, None, None, False, mask, method=method
    )
    for projection in {head.E for head in layer.heads} | {head.F for head in layer.heads}:
        torch.nn.init.zeros_(projection.bias)  # the paper's projections have none
    return layer


@pytest.mark.parametrize(
    ("sharing", "called"), [("none", "none"), ("heads", "headwise"), ("key-value", "kv")]
)
@pytest.mark.parametrize(("projection", "method"), [("linear", "learnable"), ("convolution", "convolution")])
def test_linformer_pytorch_0_19_3_agrees(sharing, called, projection, method):
    other = pytorch_layer(called, method=method)
    q, k, v = (torch.cat([x.weight for x in part]) for part in (other.to_q, other.to_k, other.to_v))
    heads = other.heads if sharing == "none" else other.heads[:1]
    E, F = (torch.stack([getattr(head, name).weight for head in heads]) for name in "EF")
    if projection == "convolution":
        E, F = (x.permute(0, 3, 2, 1) for x in (E, F))  # heads, out, in, place -> heads, place, in, out
    layer = ours(
        sharing=sharing,
        projection=projection,
        q=q,
        k=k,
        v=v,
        E=E,
        F=None if sharing == "key-value" else F,
        out=other.w_o,
    )
    x = tokens()
    assert_close(layer(x, x, x)[0], other(x))


def test_linformer_pytorch_0_19_3_agrees_on_padding():
    """Zeroing K and V before E is leaving the padding out, where it stands at the end. Elsewhere we differ:
    they number padding too, so that an example depends on how it was padded."""
    other = pytorch_layer("kv")
    q, k, v = (torch.cat([x.weight for x in part]) for part in (other.to_q, other.to_k, other.to_v))
    layer = ours(sharing="key-value", q=q, k=k, v=v, E=other.heads[0].E.weight[None], out=other.w_o)
    x = tokens()
    end, start = torch.arange(LENGTH).expand(2, -1) < 8, torch.arange(LENGTH).expand(2, -1) >= 4
    found = layer(x, x, x, key_padding_mask=~end)[0]
    assert_close(found[:, :8], other(x, input_mask=end)[:, :8])
    moved = x.roll(4, dims=1)
    assert_close(layer(moved, moved, moved, key_padding_mask=~start)[0][:, 4:], found[:, :8])
    assert (other(moved, input_mask=start)[:, 4:] - found[:, :8]).abs().max() > 0.01


def test_linformer_pytorch_0_19_3_leaks_the_future_in_its_causal_form():
    """Its mask is over slots, each of which mixes all positions. We are right to have no causal form."""
    other = pytorch_layer("kv", causal=True)
    x = tokens()
    future = torch.cat([x[:, :6], 3 * tokens(6, seed=1)], 1)
    assert (other(future)[:, :6] - other(x)[:, :6]).abs().max() > 0.01
    with pytest.raises(ValueError, match="'linformer' has no causal form"):
        MultiheadAttention(DIM, HEADS, "linformer", max_len=LENGTH, causal=True)


def test_linformer_pytorch_0_19_3_keeps_its_fixed_projection_out_of_the_state_dict():
    """A model saved so comes back as another. All that ours computes with is in its state dict."""
    package = pytest.importorskip("linformer_pytorch.linformer_pytorch")
    other = package.Linformer(LENGTH, DIM, RANK, nhead=HEADS, method="no_params")
    assert not any("E" in name.split(".") for name in other.state_dict())
    layer = MultiheadAttention(DIM, HEADS, "linformer", max_len=LENGTH, rank=RANK)
    assert {"mechanism.E", "mechanism.F"} <= set(layer.state_dict())
