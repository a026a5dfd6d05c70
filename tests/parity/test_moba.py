"""MoBA beside the authors' plain algorithm, dense masks from thresholds on gates, with many tiles a block."""

import pytest
import torch
from torch.testing import assert_close

from subquad import Dims
from subquad.mechanisms.moba import MobaAttention

H, D, BLOCK, TOP = 2, 8, 32, 4
DIMS = Dims(heads=H, head_dim=D)
LENGTH = 20 * BLOCK + 13  # so that some blocks are chosen by several tiles of queries, and the last is short


@pytest.fixture
def tokens():
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(2, H, LENGTH, D, dtype=torch.float64, generator=generator) for _ in range(3)]


@pytest.fixture
def mechanism():
    return MobaAttention(DIMS, causal=True, block=BLOCK, top=TOP)


def dense(q, k, v):
    """The own block has a gate of +inf, later ones of -inf, and gates from the k-th largest on are open."""
    n = q.shape[2]
    gates = []
    for block, keys in enumerate(k.split(BLOCK, 2)):
        gate = (q @ keys.mean(2)[..., None])[..., 0]
        gate[..., : block * BLOCK] = -torch.inf
        gate[..., block * BLOCK : (block + 1) * BLOCK] = torch.inf
        gates.append(gate)
    gate = torch.stack(gates, -1)
    seen = gate >= gate.topk(TOP, -1).values[..., -1:]
    seen = seen.repeat_interleave(BLOCK, -1)[..., :n] & torch.ones(n, n, dtype=torch.bool).tril()
    return (q @ k.mT / q.shape[-1] ** 0.5).masked_fill(~seen, -torch.inf).softmax(-1) @ v


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_it_is_the_authors_plain_algorithm(tokens, mechanism, dtype):
    inputs = [x.to(dtype).requires_grad_() for x in tokens]
    ours, theirs = mechanism(*inputs), dense(*inputs)
    assert_close(ours, theirs)
    assert_close(*(torch.autograd.grad(out.square().sum(), inputs) for out in (ours, theirs)))


def test_each_row_has_blocks_of_its_own_tokens(tokens, mechanism):
    valid = torch.rand(2, LENGTH, generator=torch.Generator().manual_seed(1)) < 0.7
    out = mechanism(*tokens, valid=valid)
    for row, real in enumerate(valid):
        q, k, v = (x[row : row + 1, :, real] for x in tokens)
        assert_close(out[row : row + 1, :, real], dense(q, k, v))


@torch.no_grad()
def test_a_stream_chooses_what_the_sequence_does(tokens, mechanism):
    expected, state, start = dense(*tokens), None, 0
    for size in (100, 1, 1, 250, 3, LENGTH - 355):
        out, state = mechanism.step(*(x[:, :, start : start + size] for x in tokens), state=state)
        assert_close(out, expected[:, :, start : start + size])
        start += size


def test_with_one_block_it_sees_its_own(tokens):
    own = MobaAttention(DIMS, causal=True, block=BLOCK, top=1)(*tokens)
    second = slice(BLOCK, 2 * BLOCK)
    expected = torch.nn.functional.scaled_dot_product_attention(
        *(x[:, :, second] for x in tokens), is_causal=True
    )
    assert_close(own[:, :, second], expected)
