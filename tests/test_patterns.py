"""Laws of patterns: what each means, pair by pair, and that its tiles and reaches hold just these pairs."""

import math

import pytest
import torch
from torch.testing import assert_close

from subquad.patterns import (
    CAUSAL,
    Blocks,
    Columns,
    Dilated,
    Fixed,
    Global,
    Local,
    PerHead,
    Random,
    Ring,
    Rows,
    Strided,
    Summaries,
)
from subquad.patterns.draws import draws
from subquad.patterns.rows import own_pairs

SETS = {  # each atom's pairs as its paper or its docstring writes them
    Local(0): lambda i, j, n: i == j,
    Local(5): lambda i, j, n: abs(i - j) <= 5,
    Dilated(2, 3): lambda i, j, n: i - j in (-6, -3, 0, 3, 6),
    Strided(4): lambda i, j, n: abs(i - j) in range(0, n, 4),
    Fixed(6, 2): lambda i, j, n: math.floor(i / 6) == math.floor(j / 6) or j % 6 in (4, 5),
    Summaries(6, 2): lambda i, j, n: j % 6 in (4, 5),
    Summaries(6, 2, before=1): lambda i, j, n: j % 6 in (3, 4),
    Columns(3): lambda i, j, n: j in (0, 1, 2),
    Columns(2, last=1): lambda i, j, n: j in (0, 1, n - 1),
    Rows(3): lambda i, j, n: i in (0, 1, 2),
    Rows(0, last=2): lambda i, j, n: i in (n - 2, n - 1),
    Global(2): lambda i, j, n: i < 2 or j < 2,
    Global(1, last=2): lambda i, j, n: {i, j} & {0, n - 2, n - 1},
    Ring(2): lambda i, j, n: any((i + step) % n == j for step in (-2, -1, 0, 1, 2)),
    Ring(1, start=1): lambda i, j, n: (
        i > 0 and j > 0 and any((i - 1 + step) % (n - 1) == j - 1 for step in (-1, 0, 1))
    ),
    Blocks(Local(1), 5): lambda i, j, n: abs(i // 5 - j // 5) <= 1,
    Blocks(Global(1, last=1), 5): lambda i, j, n: {i // 5, j // 5} & {0, (n - 1) // 5},
}
CAUSALLY = [x for x in SETS if not x.needs_end]
PATTERNS = [
    *SETS,
    *(x & CAUSAL for x in CAUSALLY),
    CAUSAL,
    Random(3, seed=1),
    Random(3) & CAUSAL,
    Blocks(Random(2), 4),
    Blocks(Random(2), 4) & CAUSAL,
    Blocks(Local(1) & CAUSAL, 4),
    Blocks(Blocks(Local(1), 2), 3),
    Local(3) | Global(2) | Random(3),
    Random(3) | Global(2) | Local(3),
    (Local(3) | Global(2) | Random(3)) & CAUSAL,
    (Local(3) & CAUSAL) | Columns(1),
    Local(7) & Strided(2),
    Strided(2) & (Local(3) | Columns(4)),
    (Strided(2) & (Local(3) | Random(4))) & CAUSAL,
    Local(7) | Local(5) | Local(7),
    Ring(1, start=1) | Global(1),
    Blocks(Local(1) | Global(1, last=1) | Random(2, seed=3), 5),
    (Local(4) | Strided(5)) & CAUSAL,
]


def literally(meaning, n):
    return torch.tensor([[bool(meaning(i, j, n)) for j in range(n)] for i in range(n)]).bool().reshape(n, n)


def counted(pattern, n, *, length):
    """How often each pair of each row stands in the tiles that attention runs over."""
    at = torch.arange(1, length + 1)[None, None, :, None]
    parts = pattern.parts(length=length, n=n, causal=False, unit=1)
    times = torch.zeros(len(n), length + 1, length + 1, dtype=torch.int64)
    for part, seen in zip(parts, own_pairs(parts, i=at, j=at, n=n), strict=True):
        i, j = part.queries(at) - 1, part.keys(at).mT - 1
        i, j, seen = torch.broadcast_tensors(i, j, seen)
        for row in range(len(n)):
            own = row if len(seen) > 1 else 0
            pairs = (i[own][seen[own]], j[own][seen[own]])
            times[row].index_put_(pairs, torch.ones(len(pairs[0]), dtype=torch.int64), accumulate=True)
    return times[:, :length, :length]


@pytest.mark.parametrize("n", [0, 1, 2, 13, 24])
@pytest.mark.parametrize("pattern", SETS, ids=repr)
def test_an_atom_allows_the_pairs_that_its_formula_names(pattern, n):
    assert_close(pattern.mask(n), literally(SETS[pattern], n))


@pytest.mark.parametrize("length", [1, 7, 41])
@pytest.mark.parametrize("pattern", PATTERNS, ids=repr)
def test_tiles_hold_every_pair_once_and_no_other(pattern, length):
    times = counted(pattern, torch.tensor([length]), length=length)
    assert_close(times[0], pattern.mask(length).long())


@pytest.mark.parametrize("pattern", PATTERNS, ids=repr)
def test_tiles_close_over_each_rows_own_length(pattern):
    n = torch.tensor([24, 9, 1, 17])
    for row, times in zip(n.tolist(), counted(pattern, n, length=24), strict=True):
        assert_close(times[:row, :row], pattern.mask(row).long())


@pytest.mark.parametrize("pattern", CAUSALLY, ids=repr)
def test_causality_hides_the_future_and_nothing_else(pattern):
    assert_close((pattern & CAUSAL).mask(23), pattern.mask(23).tril())


@pytest.mark.parametrize(
    "pattern", [p for p in PATTERNS if "& CAUSAL" in repr(p) and "Columns(1)" not in repr(p)], ids=repr
)
def test_a_causal_row_is_the_same_whatever_follows(pattern):
    if isinstance(pattern, Blocks):
        return  # causal block by block: it sees the rest of its block
    assert_close(pattern.mask(41)[:24, :24], pattern.mask(24))


@pytest.mark.parametrize("pattern", PATTERNS, ids=repr)
def test_reach_holds_every_pair_of_a_causal_row(pattern):
    if pattern.needs_end:
        return
    n = 24
    causal, i = pattern & CAUSAL, torch.arange(n)[None]
    found = torch.zeros(n, n, dtype=torch.bool)
    for keys, covers in causal.reach(i, length=n):
        seen = covers(i[..., None], keys, torch.tensor(n)) & (keys >= 0)
        found[i[..., None].expand_as(keys)[seen], keys[seen]] = True
    assert_close(found, causal.mask(n))


def test_a_union_is_a_union_and_an_intersection_an_intersection():
    a, b = Local(3), Strided(4)
    assert_close((a | b).mask(20), a.mask(20) | b.mask(20))
    assert_close((a & b).mask(20), a.mask(20) & b.mask(20))


@pytest.mark.parametrize("block", [1, 3, 4, 64])
@pytest.mark.parametrize(
    "pattern",
    [
        Local(0),
        Local(3),
        Local(8),
        Dilated(3, 1),
        Global(5),
        Columns(4),
        Rows(1),
        Fixed(192, 5),
        Summaries(192, 5),
        Summaries(192, 9, before=170),
        Local(3) | Global(2),
        (Local(3) | Global(2)) & CAUSAL,
        CAUSAL,
        Blocks(Local(1), 192),
    ],
    ids=repr,
)
def test_rounding_keeps_the_blocks_that_hold_a_pair_and_no_others(pattern, block):
    n = 25
    exact, rounded = pattern.mask(n), pattern.rounded(block).mask(n)
    for i in range(0, n, block):
        for j in range(0, n, block):
            here = slice(i, i + block), slice(j, j + block)
            assert rounded[here].all() == rounded[here].any() == exact[here].any(), (i, j)


def test_what_cannot_be_rounded_exactly_says_so():
    for pattern in (Random(3), Strided(8), Fixed(6, 1), Local(3) & Strided(2), Ring(1), Global(1, last=1)):
        with pytest.raises(ValueError, match="no exact rounding"):
            pattern.rounded(4)


@pytest.mark.parametrize("pattern", PATTERNS, ids=repr)
def test_a_pattern_prints_as_it_is_written(pattern):
    names = {
        x.__name__: x
        for x in (Blocks, Columns, Dilated, Fixed, Global, Local, Random, Ring, Rows, Strided, Summaries)
    }
    assert eval(repr(pattern), {"CAUSAL": CAUSAL, **names}) == pattern


def test_patterns_of_heads_combine_head_by_head():
    pattern = (PerHead(Local(2), Strided(3)) | Columns(1)) & CAUSAL
    assert pattern.heads == 2
    assert pattern == PerHead((Local(2) | Columns(1)) & CAUSAL, (Strided(3) | Columns(1)) & CAUSAL)
    assert_close(pattern.mask(9)[1], ((Strided(3) | Columns(1)) & CAUSAL).mask(9))
    with pytest.raises(ValueError, match="for 2 and for 3 heads"):
        _ = PerHead(Local(1), Local(2)) | PerHead(Local(1), Local(2), Local(3))
    with pytest.raises(ValueError, match="outermost"):
        Blocks(PerHead(Local(1), Local(2)), 4)


@pytest.mark.parametrize(
    "make", [lambda: Local(-1), lambda: Strided(0), lambda: Random(0), lambda: Global(0)]
)
def test_impossible_sizes_are_refused(make):
    with pytest.raises(ValueError, match="at least"):
        make()


def test_the_end_has_no_causal_form():
    for pattern in (Ring(1), Global(1, last=1), Local(2) | Blocks(Columns(0, last=1), 4)):
        with pytest.raises(ValueError, match="last of its sequence"):
            _ = pattern & CAUSAL


def test_draws_are_distinct_and_complete():
    rows = torch.arange(500)
    for among in (1, 2, 3, 7, 100):
        drawn = draws(rows, among=torch.tensor(among), count=3, seed=5)
        for row in drawn.tolist():
            keys = [key for key in row if key >= 0]
            assert len(keys) == len(set(keys)) == min(3, among)
            assert max(keys) < among


def test_draws_are_uniform_in_every_place():
    rows, among, count = 60_000, 7, 3
    drawn = draws(torch.arange(rows), among=torch.tensor(among), count=count, seed=11)
    share = torch.stack([(drawn == key).any(1).double().mean() for key in range(among)])
    deviation = (count / among * (1 - count / among) / rows) ** 0.5
    assert_close(
        share, torch.full((among,), count / among, dtype=torch.float64), rtol=0, atol=4.5 * deviation
    )


def test_pairs_of_draws_are_uniform():
    rows, among = 60_000, 5
    drawn = draws(torch.arange(rows), among=torch.tensor(among), count=2, seed=2).sort(1).values
    number = torch.bincount(drawn[:, 0] * among + drawn[:, 1], minlength=among**2).reshape(among, among)
    expected = rows / 10
    excess = (number[torch.triu(torch.ones(among, among), 1).bool()] - expected) ** 2 / expected
    assert excess.sum() < 27.9  # 0.1 % of chi square with nine degrees of freedom


def test_seeds_draw_independently():
    n, count = 400, 20
    one, other = (Random(count, seed=seed).mask(n) for seed in (0, 1))
    common = (one & other).sum().item()
    expected = n * count * count / n
    assert abs(common - expected) < 5 * expected**0.5
