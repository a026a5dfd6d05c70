"""Nystromformer against two independent implementations, weights copied."""

import warnings

import pytest
import torch
from torch.testing import assert_close

from subquad.nn.multihead import MultiheadAttention

LENGTH, LANDMARKS, DIM = 24, 6, 8


def tokens(length=LENGTH, *, batch=1, seed=0):
    return torch.randn(batch, length, DIM, generator=torch.Generator().manual_seed(seed))


def ours(in_proj, conv, *, heads, out=None, bias=None, landmarks=LANDMARKS, iterations=6):
    """Our layer with their weights; it ends with the heads side by side where there is no `out`."""
    layer = MultiheadAttention(
        DIM, heads, "nystromformer", landmarks=landmarks, iterations=iterations, kernel=5
    )
    torch.nn.init.eye_(layer.out_proj.weight)
    if out is not None:
        layer.out_proj.load_state_dict(out.state_dict())
    weights = {"in_proj_weight": in_proj, "mechanism.skip": conv.weight[:, 0, :, 0]}
    layer.load_state_dict(layer.state_dict() | weights | ({} if bias is None else {"in_proj_bias": bias}))
    return layer.eval()


def nystrom_attention(heads, *, iterations=6):
    package = pytest.importorskip("nystrom_attention.nystrom_attention")
    torch.manual_seed(0)
    other = package.NystromAttention(
        DIM,
        dim_head=DIM // heads,
        heads=heads,
        num_landmarks=LANDMARKS,
        pinv_iterations=iterations,
        residual_conv_kernel=5,
    ).eval()
    return other, ours(
        other.to_qkv.weight, other.res_conv, heads=heads, out=other.to_out[0], iterations=iterations
    )


def huggingface(heads, *, landmarks=LANDMARKS, iterations=6, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = pytest.importorskip("transformers.models.nystromformer.modeling_nystromformer")
        config = model.NystromformerConfig(
            hidden_size=DIM,
            num_attention_heads=heads,
            conv_kernel_size=5,
            attention_probs_dropout_prob=0.0,
            **options,
        )
    torch.manual_seed(0)
    other = model.NystromformerSelfAttention(config).eval()
    parts = (other.query, other.key, other.value)
    weight, bias = (torch.cat([getattr(part, name) for part in parts]) for name in ("weight", "bias"))
    layer = ours(weight, other.conv, heads=heads, bias=bias, landmarks=landmarks, iterations=iterations)
    return other, layer


def test_nystrom_attention_0_0_14_agrees_on_one_sequence_and_one_head():
    other, layer = nystrom_attention(1)
    x = 3 * tokens()
    assert_close(layer(x, x, x)[0], other(x))


def test_nystrom_attention_0_0_14_lets_a_neighbour_change_an_example():
    """It divides by the largest norms of the batch. We are right: an example is computed by itself."""
    other, layer = nystrom_attention(1)
    x = 3 * tokens(batch=2)
    beside, alone = torch.cat([x[:1], 8 * x[1:]]), x[:1]
    assert (other(beside)[:1] - other(alone)).abs().max() > 1e-3
    assert_close(layer(beside, beside, beside)[0][:1], layer(alone, alone, alone)[0])


def test_nystrom_attention_0_0_14_lets_one_head_change_another():
    """For the same reason. When the iterations have converged, the norms they began with do not matter."""
    x = 3 * tokens()
    other, layer = nystrom_attention(2)
    assert (layer(x, x, x)[0] - other(x)).abs().max() > 1e-3
    other, layer = nystrom_attention(2, iterations=30)
    assert_close(layer(x, x, x)[0], other(x), rtol=1e-4, atol=1e-4)


def test_nystrom_attention_0_0_14_attends_to_its_own_padding():
    """Where landmarks do not divide the length it puts zeros in front and, without a mask, leaves them in the
    softmax and the landmarks. We are right: five tokens with a landmark each get softmax attention."""
    other, layer = nystrom_attention(2, iterations=30)
    x = 3 * tokens(5)
    q, k, v = (part.unflatten(-1, (2, -1)).transpose(1, 2) for part in other.to_qkv(x).chunk(3, -1))
    exact = torch.nn.functional.scaled_dot_product_attention(q, k, v) + other.res_conv(v)
    exact = other.to_out(exact.transpose(1, 2).flatten(2))
    assert_close(layer(x, x, x)[0], exact, rtol=1e-3, atol=1e-3)
    assert (other(x) - exact).abs().max() > 0.02


def test_nystrom_attention_0_0_14_cannot_compute_in_bfloat16():
    """Its identity matrix is float32. Ours computes the pseudo-inverse in float32, whatever comes in."""
    other, layer = nystrom_attention(2)
    x = tokens().to(torch.bfloat16)
    with pytest.raises(RuntimeError, match="expected scalar type BFloat16 but found Float"):
        other.to(torch.bfloat16)(x)
    assert layer.to(torch.bfloat16)(x, x, x)[0].isfinite().all()


def test_transformers_5_23_agrees_on_one_sequence_and_one_head():
    other, layer = huggingface(1, num_landmarks=LANDMARKS, segment_means_seq_len=LENGTH)
    x = 3 * tokens()
    assert_close(layer(x, x, x)[0], other(x)[0])


def test_transformers_5_23_lets_one_head_and_one_neighbour_change_another():
    """Its norms are those of the whole batch, as in nystrom-attention. We are right."""
    other, layer = huggingface(2, num_landmarks=LANDMARKS, segment_means_seq_len=LENGTH)
    x = 3 * tokens(batch=2)
    beside, alone = torch.cat([x[:1], 8 * x[1:]]), x[:1]
    assert (layer(alone, alone, alone)[0] - other(alone)[0]).abs().max() > 1e-3
    assert (other(beside)[0][:1] - other(alone)[0]).abs().max() > 1e-3
    assert_close(layer(beside, beside, beside)[0][:1], layer(alone, alone, alone)[0])


def test_transformers_5_23_is_full_attention_at_its_defaults():
    """By default it has as many landmarks as tokens, and then takes plain softmax, as ours converges to."""
    other, layer = huggingface(2, landmarks=64, iterations=30)
    assert other.num_landmarks == other.seq_len == 64
    x = tokens(20)
    assert_close(layer(x, x, x)[0], other(x)[0], rtol=1e-3, atol=1e-3)


def test_transformers_5_23_takes_no_length_but_one():
    """We are right: segments follow the row's own length."""
    other, layer = huggingface(2, num_landmarks=LANDMARKS, segment_means_seq_len=LENGTH)
    x = tokens(LENGTH - 1)
    with pytest.raises(RuntimeError, match="invalid for input of size"):
        other(x)
    assert layer(x, x, x)[0].isfinite().all()


def test_transformers_5_23_crashes_on_its_option_for_norms_by_matrix():
    """It subscripts its config with a misspelt name. In ours the norms are always each matrix's own."""
    with pytest.raises(TypeError, match="not subscriptable"):
        huggingface(2, num_landmarks=LANDMARKS, segment_means_seq_len=LENGTH, inv_coeff_init_option=True)
