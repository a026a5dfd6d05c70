"""Laws of native sparse attention, beyond the contract: what each branch is by itself."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.testing import assert_close

from subquad import Dims, build
from subquad.mechanisms.nsa import NsaInputs, importance

DIMS = Dims(heads=2, head_dim=4)
LENGTH = 45
COMPRESSED, SELECTED, WINDOW = torch.eye(3).bool()


class First(nn.Module):
    """Of each block its first token."""

    def forward(self, blocks):
        return blocks[..., 0, :]


SMALL = {"compression": 4, "stride": 2, "block": 4, "window": 3}


def nsa(phi=None, **options):
    """`phi`: what compresses, instead of the MLPs."""
    torch.manual_seed(0)
    mechanism = build("nsa", DIMS, causal=True, **options).double()
    if phi is not None:
        mechanism.register_module("phi_k", phi)
        mechanism.register_module("phi_v", phi)
    return mechanism


def inputs(branch=None, *, length=LENGTH):
    """Random ones, whose gates are open for one branch alone if there is one."""
    generator = torch.Generator().manual_seed(1)
    x = [torch.randn(2, 2, length, 4, dtype=torch.float64, generator=generator) for _ in range(7)]
    gates = torch.randn(2, 2, length, 3, dtype=torch.float64, generator=generator)
    if branch is not None:
        gates = torch.where(branch, 40.0, -40.0).double().expand_as(gates)
    return NsaInputs._make([*x, gates])


def softmax(q, k, v):
    return F.scaled_dot_product_attention(q, k, v, is_causal=True)


def test_the_selected_branch_is_softmax_attention_where_no_more_than_n_blocks_are_there():
    x = inputs(SELECTED)
    assert_close(nsa(top=12, **SMALL)(*x), softmax(x.q, x.k, x.v))
    fewer = (nsa(top=11, **SMALL)(*x) - softmax(x.q, x.k, x.v)).abs().amax((0, 1, 3))
    assert (fewer[:44] < 1e-12).all()
    assert fewer[44] > 1e-3


def test_the_window_is_local_attention():
    x = inputs(WINDOW)
    local = build("local", DIMS, causal=True, width=3)
    assert_close(nsa(window=3)(*x), local(x.q, x.window_k, x.window_v))


def test_the_compressed_branch_is_softmax_attention_where_each_token_is_a_block():
    x, mechanism = inputs(COMPRESSED), nsa(First(), compression=1, stride=1, block=1, top=3)
    assert_close(mechanism(*x), softmax(x.q, x.compressed_k, x.compressed_v))


@pytest.mark.parametrize(("l", "d", "block"), [(4, 2, 4), (6, 2, 8), (2, 1, 5), (3, 3, 6), (1, 1, 1)])
def test_importance_counts_the_tokens_that_compressed_keys_have_in_a_block(l, d, block):
    p_cmp = torch.rand(1, 1, 2, 17, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    counted = importance(p_cmp, l // d, block // d)
    for j in range(counted.shape[3]):
        tokens = range(j * block, (j + 1) * block)
        shared = [sum(t in tokens for t in range(c * d, c * d + l)) / d for c in range(17)]
        assert_close(counted[..., j], p_cmp @ torch.tensor(shared, dtype=torch.float64))


def test_it_finds_the_one_block_that_a_query_asks_for():
    """Value 1 at one token far away, which neither the window nor a block that is always seen has."""
    x, mechanism = inputs(SELECTED), nsa(First(), top=4, **SMALL)
    needle, asks = 18, torch.tensor([30.0, 0, 0, 0], dtype=torch.float64)
    k, compressed_k, v = torch.zeros_like(x.k), torch.zeros_like(x.k), torch.zeros_like(x.v)
    k[:, :, needle], compressed_k[:, :, needle], v[:, :, needle] = asks, asks, 1
    q = asks.expand_as(x.q)
    out = mechanism(*x._replace(q=q, k=k, v=v, compressed_k=compressed_k))
    assert_close(out[:, :, 24:], torch.ones_like(out[:, :, 24:]))
    compressed_k = compressed_k.roll(-8, 2)  # importance leads to another block
    lost = mechanism(*x._replace(q=q, k=k, v=v, compressed_k=compressed_k))
    assert_close(lost[:, :, 24:], torch.zeros_like(lost[:, :, 24:]))


def test_queries_that_are_taken_a_few_at_a_time_get_the_same(monkeypatch):
    mechanism, x = nsa(top=4, **SMALL), inputs()
    leaves = [y.requires_grad_() for y in x]
    whole = mechanism(*leaves)
    monkeypatch.setattr("subquad.mechanisms.nsa.CACHED_SCORES", 2 * 2 * 23 * 7)  # of 7 queries
    some = mechanism(*leaves)
    assert_close(some, whole)
    assert_close(*(torch.autograd.grad(out.sin().sum(), leaves) for out in (some, whole)))


@torch.no_grad()
def test_a_stream_compresses_each_stretch_once_whatever_its_chunks():
    mechanism, x = nsa(top=4, **SMALL), inputs()
    _, whole = mechanism.step(*x)
    _, state = mechanism.step(*[y[:, :, :1] for y in x])
    for t in range(1, LENGTH):
        _, state = mechanism.step(*[y[:, :, t : t + 1] for y in x], state=state)
    complete = (LENGTH - 4) // 2 + 1
    assert state.compressed.shape[2] == whole.compressed.shape[2] == -(-LENGTH // 2)
    assert_close(state.compressed[:, :, :complete], whole.compressed[:, :, :complete])
    assert_close(state.recent, whole.recent)


@torch.no_grad()
def test_padding_takes_no_slot_of_a_state_that_has_just_enough_room():
    mechanism, x = nsa(top=4, **{**SMALL, "compression": 2}), inputs()
    valid = (torch.arange(8) < 5).expand(2, 8)
    _, whole = mechanism.step(*[y[:, :, :45] for y in x])
    _, state = mechanism.step(*[y[:, :, :40] for y in x])
    state = mechanism.reserve(state, 5)
    chunk = [torch.nn.functional.pad(y[:, :, 40:], (0, 0, 0, 3), value=9.0) for y in x]
    _, state = mechanism.step(*chunk, valid=valid, state=state, in_place=True)
    assert_close(state.compressed[:, :, :22], whole.compressed[:, :, :22])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"compression": 6, "stride": 4}, "stride=4 must divide compression=6 and block=64"),
        ({"stride": 32, "block": 48}, "stride=32 must divide compression=32 and block=48"),
        ({"block": 16}, "compression=32 and block=16, and compression be no more than block"),
        ({"top": 2}, "top must be at least 3: the first block and the newest two, not 2"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        nsa(**options)
