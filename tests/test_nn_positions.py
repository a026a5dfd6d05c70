"""Positions count real tokens."""

import pytest
import torch
from torch.testing import assert_close

from subquad.nn.positions import KINDS, count, positional_encoding
from subquad.ops.shared.rotary import rotate

HOLES = torch.tensor([[False, False, True, False, True, True], [True, True, True, False, False, False]])
START = torch.zeros(1, dtype=torch.int64)


def test_real_tokens_are_counted_and_padding_is_not():
    ordinals, offset = count(6, valid=HOLES, offset=START)
    assert ordinals[HOLES].tolist() == [0, 1, 2, 0, 1, 2]
    assert not ordinals[~HOLES].any()
    assert offset.tolist() == [3, 3]


@pytest.mark.parametrize("sizes", [(6,), (1, 2, 0, 3), (4, 2)], ids=str)
@pytest.mark.parametrize("padded", [True, False])
def test_counting_goes_on_from_chunk_to_chunk(sizes, padded):
    expected, end = count(6, valid=HOLES if padded else None, offset=torch.zeros(2, dtype=torch.int64))
    offset, parts = torch.zeros(2, dtype=torch.int64), []
    for valid in HOLES.split(sizes, 1):
        ordinals, offset = count(valid.shape[1], valid=valid if padded else None, offset=offset)
        parts.append(ordinals)
    real = HOLES if padded else torch.ones_like(HOLES)
    assert_close(torch.cat(parts, 1)[real], expected[real])
    assert_close(offset, end)


@pytest.mark.parametrize("kind", ["learnt", "sinusoidal"])
def test_each_position_has_a_vector_of_its_own(kind):
    vectors = positional_encoding(kind, 8, max_len=6)(torch.zeros(1, 6, 8), torch.arange(6)[None])[0]
    distances = torch.cdist(vectors, vectors) + torch.eye(6)
    assert distances.min() > 1e-3


def test_sinusoidal_waves_are_those_of_the_paper():
    encoding = positional_encoding("sinusoidal", 8, max_len=None)
    vectors = encoding(torch.zeros(1, 50, 8), torch.arange(50)[None])[0]
    assert_close(vectors[:, 0], torch.arange(50.0).sin())
    assert_close(vectors[:, 4], torch.arange(50.0).cos())
    assert_close(vectors[:, 2], (torch.arange(50.0) / 100).sin())  # 10000 ** (2 i / m), i = 2, m = 8


@pytest.mark.parametrize("shift", [1, 1000])
def test_rotary_products_see_differences_of_positions_only(shift):
    q, k = torch.randn(2, 1, 2, 7, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    here = torch.arange(7)[None]
    scores, shifted = (rotate(q, at) @ rotate(k, at).mT for at in (here, here + shift))
    assert_close(shifted, scores)


def test_rotary_products_depend_on_the_distance():
    x = torch.ones(1, 1, 7, 8)
    turned = rotate(x, torch.arange(7)[None])
    assert_close(turned.norm(dim=-1), x.norm(dim=-1))
    assert (turned[0, 0] @ turned[0, 0, 0]).unique().numel() == 7


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_rotary_angles_at_late_positions_survive_half_precision(dtype):
    x, late = torch.ones(1, 1, 1, 8), torch.tensor([[40_001]])
    exact = rotate(x.double(), late)
    error = (rotate(x.to(dtype), late).double() - exact).abs().max()
    assert error < 4 * torch.finfo(dtype).eps  # the rounding of the output and of cos and sin, nothing more


@pytest.mark.parametrize(
    ("kind", "dim", "max_len", "remedy"),
    [
        ("rotery", 8, None, "unknown positions 'rotery'; did you mean 'rotary'"),
        ("learned", 8, 10, "unknown positions 'learned'; did you mean 'learnt'"),
        ("xyz", 8, 10, "known: learnt, none, rotary, sinusoidal"),
        ("learnt", 8, None, "set max_len to the longest sequence"),
        ("sinusoidal", 7, None, "need an even dim, not 7"),
    ],
)
def test_positions_that_cannot_be_built_are_refused(kind, dim, max_len, remedy):
    with pytest.raises(ValueError, match=remedy):
        positional_encoding(kind, dim, max_len=max_len)


def test_learnt_positions_refuse_what_comes_after_the_last():
    learnt = positional_encoding("learnt", 8, max_len=6)
    learnt(torch.zeros(1, 6, 8), torch.arange(6)[None])
    with pytest.raises(ValueError, match="a sequence has 7 tokens and learnt positions end at max_len=6"):
        learnt(torch.zeros(1, 7, 8), torch.arange(7)[None])


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_keeps_shape_and_dtype(kind):
    x = torch.zeros(2, 6, 8, dtype=torch.bfloat16)
    out = positional_encoding(kind, 8, max_len=6).to(torch.bfloat16)(
        x, count(6, valid=HOLES, offset=START)[0]
    )
    assert out.shape == x.shape
    assert out.dtype == x.dtype
