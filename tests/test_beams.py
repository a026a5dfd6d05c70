"""Beam search: the best there are where nothing is cut off, and greedy where all but one is."""

import itertools

import pytest
import torch
from test_generate import GREEDY, OUTPUTS, PROMPTS, model_of
from torch.testing import assert_close

from subquad.nn.beams import beam_search
from subquad.nn.generation import generate
from subquad.ops.shared.waiting import without_waiting

STOP = [[2], [4, 4]]


@torch.no_grad()
def scores(model, prompt, ways, alpha):
    """log p of ways to go on, all as long, over the length to the power of alpha, from the whole at once."""
    ids = torch.tensor(ways)
    logits = model((torch.cat([torch.tensor([prompt] * len(ids)), ids[:, :-1]], 1),), None)
    log_p = logits[:, len(prompt) - 1 :].log_softmax(-1).gather(2, ids[..., None]).sum((1, 2))
    return dict(zip(ways, (log_p / ids.shape[1] ** alpha).tolist(), strict=True))


def all_ways(model, prompt, alpha, *, tokens, stop):
    """Every sequence of so many tokens, or fewer where it ends before, with its score, from the best."""

    def end(way):
        ends = (n for n in range(1, len(way) + 1) if any(way[:n][-len(ids) :] == tuple(ids) for ids in stop))
        return next(ends, tokens)

    found = {}
    for length in range(1, tokens + 1):
        ways = itertools.product(range(OUTPUTS), repeat=length)
        found |= scores(model, prompt, [way for way in ways if end(way) == length], alpha)
    return sorted(found.items(), key=lambda x: -x[1])


def found_by(result, row):
    tokens, lengths, scores = (part[row].tolist() for part in result)
    return [(tuple(way[:n]), score) for way, n, score in zip(tokens, lengths, scores, strict=True)]


@pytest.mark.parametrize("alpha", [0.0, 1.0, 0.6])
@pytest.mark.parametrize("attention", ["softmax", "gated-delta"])
def test_with_a_beam_for_every_way_the_search_is_exhaustive(attention, alpha):
    model = model_of(attention)
    known = [all_ways(model, prompt, alpha, tokens=3, stop=STOP) for prompt in PROMPTS[1:]]
    beams = len(known[0]) + 2
    result = beam_search(model, PROMPTS[1:], tokens=3, beams=beams, alpha=alpha, stop=STOP)
    for row, expected in enumerate(known):
        *best, nothing, _ = found_by(result, row)
        assert [way for way, _ in best] == [way for way, _ in expected]
        assert_close([score for _, score in best], [score for _, score in expected])
        assert nothing[1] == -torch.inf


@pytest.mark.parametrize("attention", ["softmax", "linear", "local", "transformer-xl", "sparse-transformer"])
def test_one_beam_is_greedy(attention):
    model = model_of(attention)
    result = beam_search(model, PROMPTS, tokens=9, beams=1, stop=STOP)
    expected = generate(model, PROMPTS, tokens=9, sampling=GREEDY, stop=STOP)
    assert_close(result.tokens[:, 0], expected.tokens)
    assert_close(result.lengths[:, 0], expected.lengths)


@pytest.mark.parametrize("attention", ["softmax", "linear", "local", "compressive", "routing"])
def test_every_beam_has_the_state_of_its_own_past(attention):
    model = model_of(attention)
    result = beam_search(model, PROMPTS, tokens=12, beams=4)
    for row, prompt in enumerate(PROMPTS):
        best = found_by(result, row)
        assert len({way for way, _ in best}) == 4
        assert_close(dict(best), scores(model, prompt, [way for way, _ in best], 0))
        assert best == sorted(best, key=lambda x: -x[1])


def test_what_has_ended_stays_among_the_best():
    model = model_of()
    result = beam_search(model, PROMPTS, tokens=12, beams=5, stop=STOP)
    assert result.lengths.min() < result.lengths.max()
    for row, prompt in enumerate(PROMPTS):
        for way, score in found_by(result, row):
            assert score == pytest.approx(scores(model, prompt, [way], 0)[way])


def test_where_nobody_looks_the_search_is_the_same():
    model = model_of("softmax")
    expected = beam_search(model, PROMPTS, tokens=8, beams=3, stop=STOP, alpha=1.0)
    with without_waiting():
        result = beam_search(model, PROMPTS, tokens=8, beams=3, stop=STOP, alpha=1.0)
    length = expected.tokens.shape[2]
    assert_close(result.tokens[..., :length], expected.tokens)
    assert_close(result[1:], expected[1:])


def test_no_beam_is_refused():
    with pytest.raises(ValueError, match="beams must be at least 1, not 0"):
        beam_search(model_of(), PROMPTS, tokens=3, beams=0)
