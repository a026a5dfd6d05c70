"""The Compressive Transformer against compressive-transformer-pytorch, where that package is right.

It compresses hidden states, we keys and values; for a convolution that is the mean both are the same, since
projections are linear. Where it is wrong, the tests show how.
"""

from typing import Any

import pytest
import torch
from torch.testing import assert_close

from subquad import Dims
from subquad.mechanisms.compressive import CompressiveAttention
from subquad.ops.relative_attention.positions import sinusoid

package = pytest.importorskip("compressive_transformer_pytorch.compressive_transformer_pytorch")
HEADS, WIDTH, LENGTH = 2, 4, 24


def theirs(*, segment, memory, compressed, rate):
    """Their attention, whose convolution is the mean and whose output is the heads side by side."""
    torch.manual_seed(0)
    dim = HEADS * WIDTH
    attention = package.SelfAttention(dim, segment, memory, compressed, rate, heads=HEADS).double()
    conv = attention.compress_mem_fn.conv
    conv.weight.data = torch.eye(dim, dtype=torch.float64)[..., None].repeat(1, 1, rate) / rate
    for parameter in (conv.bias, attention.to_out.bias):
        torch.nn.init.zeros_(parameter)
    torch.nn.init.eye_(attention.to_out.weight)
    return attention


def ours(**options: Any):
    dims = Dims(heads=HEADS, head_dim=WIDTH)
    attention = CompressiveAttention(dims, causal=True, **options).double()
    for bias in (attention.attention.u, attention.attention.v):  # theirs has none
        torch.nn.init.zeros_(bias)
    return attention


def tokens():
    generator = torch.Generator().manual_seed(1)
    return torch.randn(2, LENGTH, HEADS * WIDTH, dtype=torch.float64, generator=generator)


def projected(attention, x):
    """Queries, keys and values by their weights."""
    q, (k, v) = attention.to_q(x), attention.to_kv(x).chunk(2, -1)
    return tuple(each.unflatten(2, (HEADS, WIDTH)).transpose(1, 2) for each in (q, k, v))


def by_segment(attention, x, W_R):
    """Their outputs and auxiliary losses, segment after segment, with our term of distances."""
    outputs, losses = [], []
    memories: Any = None
    distances = torch.arange(LENGTH).flip(0)
    table = sinusoid(distances, WIDTH, like=x) @ W_R
    for segment in x.split(attention.seq_len, 1):
        out, memories, loss = attention(segment, memories, pos_emb=table)
        outputs.append(out)
        losses.append(loss.reshape(1))
    return torch.cat(outputs, 1), torch.cat(losses), memories


@pytest.mark.parametrize("compression", ["convolution", "mean"])
@pytest.mark.parametrize(
    ("segment", "memory", "compressed", "rate"), [(4, 8, 3, 2), (4, 4, 4, 4), (6, 6, 9, 3)]
)
def test_outputs_and_memories_are_the_same(segment, memory, compressed, rate, compression):
    sizes = {"segment": segment, "memory": memory, "compressed": compressed, "rate": rate}
    reference, attention, x = theirs(**sizes).eval(), ours(**sizes, compression=compression), tokens()
    expected, _, memories = by_segment(reference, x, attention.attention.W_R)
    out, state = attention.step(*projected(reference, x))
    assert_close(out.transpose(1, 2).flatten(2), expected)
    for found, hidden in zip(
        (state.past, state.compressed), (memories.mem, memories.compressed_mem), strict=True
    ):
        _, k, v = projected(reference, hidden)
        assert_close(found[:, :, -k.shape[2] :], torch.cat([k, v], -1))


def test_the_reconstruction_loss_of_every_segment_is_the_same():
    sizes = {"segment": 4, "memory": 4, "compressed": 4, "rate": 2}
    reference, attention, x = theirs(**sizes).train(), ours(**sizes), tokens()
    _, expected, _ = by_segment(reference, x, attention.attention.W_R)
    state, losses = None, []
    for segment in x.split(4, 1):
        _, state = attention.step(*projected(reference, segment), state=state)
        losses.append(attention.penalty())
    assert_close(torch.stack(losses), expected)
    assert (expected[1:] > 0).all()


def test_theirs_freezes_keys_and_values_at_the_first_compression_and_ours_trains_them():
    # `to_kv.weight.detach_()` is meant for one product, but changes the parameter for good
    sizes = {"segment": 4, "memory": 4, "compressed": 4, "rate": 2}
    reference, attention, x = theirs(**sizes).train(), ours(**sizes), tokens()
    q, k, v = (each.detach().requires_grad_() for each in projected(reference, x))
    assert reference.to_kv.weight.requires_grad
    by_segment(reference, x, attention.attention.W_R)
    assert not reference.to_kv.weight.requires_grad
    for _ in range(2):
        (attention(q, k, v).square().sum() + attention.penalty()).backward()
        assert k.requires_grad
        assert v.requires_grad
    assert k.grad.any()
    assert v.grad.any()


def test_theirs_drops_tokens_that_do_not_divide_by_the_rate_and_ours_refuses_such_sizes():
    # five tokens leave, `5 % 4` zeros are put before them, and six make one slot of four
    sizes = {"segment": 5, "memory": 5, "compressed": 8, "rate": 4}
    reference, x = theirs(**sizes).eval(), tokens()[:, :10]
    changed = x.clone()
    changed[:, 3:5] += 1  # the last two of those that leave
    compressed = [by_segment(reference, each, torch.zeros(2, 4, 4).double())[2][1] for each in (x, changed)]
    assert compressed[0].shape[1] == 1
    assert_close(compressed[0], compressed[1])
    with pytest.raises(ValueError, match=r"segment must be a multiple of rate=4, .* not 5: take 8"):
        ours(**sizes)
