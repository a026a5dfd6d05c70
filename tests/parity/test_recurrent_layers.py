"""Recurrences beside the layers of Hugging Face's models: Mamba-2's mixer and MiniMax's lightning attention.

Their projections are left out. Of a convolution's taps that of the token itself is one, the others zero.
Norms go over a head, as ours do: Mamba-2's has groups for that, MiniMax's is changed.
"""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.testing import assert_close

from subquad import Dims
from subquad.mechanisms.lightning import LightningAttention
from subquad.mechanisms.ssd import SsdAttention

mamba2 = pytest.importorskip("transformers.models.mamba2.modeling_mamba2")
minimax = pytest.importorskip("transformers.models.minimax.modeling_minimax")

B, H, T, D = 2, 3, 70, 8


def sequence(mechanism):
    generator = torch.Generator().manual_seed(0)
    widths = mechanism.projections().items()
    return {name: torch.randn(B, H, T, width, generator=generator) for name, width in widths}


def side_by_side(x):
    """(b h t d) as their layers have it: (b t h*d)."""
    return x.transpose(1, 2).flatten(2)


def by_head(x):
    return x.unflatten(-1, (H, D)).transpose(1, 2)


def test_mamba_2s_mixer_is_ssd():
    config = mamba2.Mamba2Config(
        num_heads=H, head_dim=D, state_size=D, n_groups=H, hidden_size=H * D, expand=1, chunk_size=16
    )
    mechanism = SsdAttention(Dims(heads=H, head_dim=D), causal=True)
    layer = mamba2.Mamba2Mixer(config, layer_idx=0).eval()
    layer.in_proj = layer.out_proj = nn.Identity()
    nn.init.zeros_(layer.conv1d.weight).data[..., -1] = 1
    nn.init.zeros_(layer.conv1d.bias)
    nn.init.uniform_(mechanism.D)
    nn.init.uniform_(mechanism.get_parameter("scale"))
    layer.A_log, layer.dt_bias, layer.D = mechanism.log_A, mechanism.b, mechanism.D
    layer.norm.weight = nn.Parameter(mechanism.get_parameter("scale").repeat(H))
    inputs = sequence(mechanism)
    q, k, v, dt, gate = map(side_by_side, inputs.values())
    expected = by_head(layer(torch.cat([gate, v, k, q, dt], -1)))
    assert_close(mechanism(**inputs), expected, rtol=1e-4, atol=1e-5)


class NormOfHeads(nn.Module):
    def forward(self, x):
        return F.rms_norm(x.unflatten(-1, (H, D)), (D,), eps=1e-5).flatten(-2)


@pytest.mark.parametrize("layer", [0, 2, 3])
def test_minimaxs_attention_is_lightning(layer):
    config = minimax.MiniMaxConfig(
        hidden_size=H * D, num_attention_heads=H, head_dim=D, num_hidden_layers=4, block_size=16
    )
    mechanism = LightningAttention(Dims(heads=H, head_dim=D, layer=layer), causal=True, layers=4)
    theirs = minimax.MiniMaxLightningAttention(config, layer_idx=layer)
    inputs = sequence(mechanism)
    qkv = torch.cat([inputs[name] for name in ("q", "k", "v")], -1)  # a head's stand together there
    theirs.qkv_proj, theirs.out_proj, theirs.norm = Replaced(side_by_side(qkv)), nn.Identity(), NormOfHeads()
    theirs.output_gate = Replaced(side_by_side(inputs["gate"]))
    expected, _ = theirs(torch.zeros(B, T, H * D), (None, None), None)
    assert_close(mechanism(**inputs), by_head(expected), rtol=1e-4, atol=1e-5)


class Replaced(nn.Module):
    """A projection whose output is known."""

    def __init__(self, output):
        super().__init__()
        self.output = output

    def forward(self, _):
        return self.output
