"""Transformer-XL against the attention that XLNet took over from it, in Hugging Face transformers."""

import pytest
import torch
from torch.testing import assert_close

from subquad import Dims
from subquad.mechanisms.transformer_xl import TransformerXL

xlnet = pytest.importorskip("transformers.models.xlnet.modeling_xlnet")
HEADS, WIDTH, LENGTH = 2, 4, 24


def core(attention):
    """Their attention with our biases; its other weights are not used."""
    config = xlnet.XLNetConfig(d_model=HEADS * WIDTH, n_head=HEADS, n_layer=1, d_inner=8, dropout=0.0)
    theirs = xlnet.XLNetRelativeAttention(config).double()
    theirs.r_w_bias.data, theirs.r_r_bias.data = attention.u.data, attention.v.data
    return theirs


def positions(W_R, *, queries, keys):
    """W_R r_n for n = `keys` .. 1 - `queries`, by their sinusoids."""
    frequencies = 10_000 ** -(torch.arange(0, WIDTH, 2, dtype=torch.float64) / WIDTH)
    n = torch.arange(keys, -queries, -1, dtype=torch.float64)
    r = xlnet.XLNetModel.positional_embedding(n, frequencies)
    return torch.einsum("pbr,hrd->pbhd", r, W_R)


@pytest.mark.parametrize(("segment", "memory"), [(24, 0), (8, 8), (6, 12), (5, 7), (4, 1)])
def test_the_segments_of_xlnets_attention_with_a_memory_are_ours(segment, memory):
    dims = Dims(heads=HEADS, head_dim=WIDTH)
    ours = TransformerXL(dims, causal=True, segment=segment, memory=memory).double()
    q, k, v = torch.randn(3, LENGTH, 2, HEADS, WIDTH, dtype=torch.float64)
    theirs, outputs = core(ours.attention), []
    for start in range(0, LENGTH, segment):
        now = slice(start, start + segment)
        seen = slice(max(start - memory, 0), start + segment)
        queries, keys = len(q[now]), len(k[seen])
        future = torch.ones(queries, keys, dtype=torch.float64).triu(1 + keys - queries)[..., None, None]
        W_R_r = positions(ours.attention.W_R, queries=queries, keys=keys).expand(-1, 2, -1, -1)
        outputs.append(theirs.rel_attn_core(q[now], k[seen], v[seen], W_R_r, attn_mask=future))
    found = ours(*(x.permute(1, 2, 0, 3) for x in (q, k, v)))
    assert_close(found, torch.cat(outputs).permute(1, 2, 0, 3))
