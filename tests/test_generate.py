"""Generation by steps of a stream: token for token what a model answers to the whole, computed anew."""

import math
import re

import pytest
import torch
from mechanism_names import STREAMING
from torch.testing import assert_close

from subquad.config import SamplingConfig
from subquad.fields import Readout, Tokens
from subquad.mechanism import Mechanism
from subquad.mechanisms.softmax import SoftmaxAttention
from subquad.nn import generation
from subquad.nn.encoder import EncoderConfig
from subquad.nn.generation import ROOM, Decoder, generate
from subquad.nn.model import SequenceModel, SequenceModelConfig
from subquad.nn.sampling import Uniforms, draw
from subquad.ops.shared.waiting import without_waiting
from subquad.registry import catalog
from subquad.testing.mechanism.cases import tensors
from subquad.testing.mechanism.waiting import no_waiting

BOUNDED = [name for name in STREAMING if catalog()[name].traits.state == "bounded"]
OUTPUTS, BEGIN = 7, 7  # ids of answers, and the one with which prompts begin
PROMPTS = [[BEGIN, 1, 1, 4, 0, 2, 5, 3, 3], [BEGIN], [BEGIN, 2, 6, 5]]
GREEDY = SamplingConfig(temperature=0)
SAMPLED = SamplingConfig(temperature=0.9, top_k=5, top_p=0.95, repetition_penalty=1.3, seed=3)


def model_of(attention="linear", *, max_len=400, depth=2, dtype=torch.float64, **chosen) -> SequenceModel:
    """A model whose answers differ clearly from place to place."""
    torch.manual_seed(0)
    options = dict(catalog()[attention].traits.tiny)
    encoder = EncoderConfig(
        **{"attention": attention, "options": options, "causal": True, "positions": "sinusoidal"}
        | {"dim": 8, "depth": depth, "heads": 2, "max_len": max_len, **chosen}
    )
    fields, readout = Tokens(vocabulary=OUTPUTS + 1), Readout(outputs=OUTPUTS, per="token")
    model = SequenceModel(SequenceModelConfig(fields=fields, readout=readout, encoder=encoder))
    model.head.get_parameter("weight").data.normal_()
    return model.to(dtype).eval()


def next_by_hand(logits, prefix, sampling, uniform):
    """The next token, by lists and loops."""
    logits = logits.tolist()
    for token in {*prefix} - {BEGIN}:
        factor = sampling.repetition_penalty
        logits[token] = logits[token] / factor if logits[token] > 0 else logits[token] * factor
    ranked = sorted(range(len(logits)), key=lambda token: -logits[token])
    if not sampling.temperature:
        return ranked[0]
    weight = {token: math.exp(logits[token] / sampling.temperature) for token in ranked}
    ranked = ranked[: sampling.top_k or len(ranked)]
    total, mass, kept = sum(weight[token] for token in ranked), 0.0, []
    for token in ranked:
        if mass < sampling.top_p:
            kept.append(token)
            mass += weight[token] / total
    if not (sampling.top_k or sampling.top_p < 1):
        kept.sort()
    target = uniform * mass
    for token in kept[:-1]:
        target -= weight[token] / total
        if target < 0:
            return token
    return kept[-1]


@torch.no_grad()
def recomputed(model, prompt, sampling, *, tokens, stop=(), sample=0):
    """What comes after a prompt, alone in its batch, with the whole of it computed anew for each token."""
    numbers = Uniforms(sampling.seed, [f"{sample} of {prompt}"], tokens=ROOM, device=torch.device("cpu"))
    numbers.refill()
    new = []
    while len(new) < tokens and not any(new[-len(ids) :] == list(ids) for ids in stop):
        logits = model((torch.tensor([prompt + new]),), None)[0, -1]
        new.append(next_by_hand(logits, prompt + new, sampling, numbers.next().item()))
    return new


def rows_of(generated):
    return [row[:n] for row, n in zip(generated.tokens.tolist(), generated.lengths.tolist(), strict=True)]


@pytest.mark.parametrize("sampling", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
@pytest.mark.parametrize("attention", STREAMING)
def test_every_stream_generates_what_the_whole_computed_anew_does(attention, sampling):
    model, stop = model_of(attention), [[3, 3], [6]]
    result = generate(model, PROMPTS, tokens=8, sampling=sampling, stop=stop)
    expected = [recomputed(model, prompt, sampling, tokens=8, stop=stop) for prompt in PROMPTS]
    assert rows_of(result) == expected
    assert result.tokens.shape == (3, max(map(len, expected)))
    assert not result.tokens[torch.arange(result.tokens.shape[1]) >= result.lengths[:, None]].any()


@pytest.mark.parametrize("positions", ["none", "learnt", "sinusoidal", "rotary"])
@pytest.mark.parametrize("attention", ["softmax", "linear"])
def test_positions_go_on_where_each_prompt_ends(attention, positions):
    model = model_of(attention, positions=positions, max_len=16)
    expected = [recomputed(model, prompt, SAMPLED, tokens=8) for prompt in PROMPTS]
    assert rows_of(generate(model, PROMPTS, tokens=8, sampling=SAMPLED)) == expected


@pytest.mark.parametrize("attention", ["softmax", "gated-delta", "transformer-xl"])
def test_a_row_depends_on_its_prompt_its_seed_and_its_number_alone(attention):
    model = model_of(attention)
    together = rows_of(generate(model, PROMPTS, tokens=12, sampling=SAMPLED, samples=3))
    assert together[:3] == rows_of(generate(model, PROMPTS[:1], tokens=12, sampling=SAMPLED, samples=3))
    assert together[::3] == rows_of(generate(model, PROMPTS, tokens=12, sampling=SAMPLED))
    assert len({tuple(row) for row in together}) == 9
    assert [row[:5] for row in together] == rows_of(
        generate(model, PROMPTS, tokens=5, sampling=SAMPLED, samples=3)
    )
    other = SamplingConfig(temperature=0.9, top_k=5, top_p=0.95, repetition_penalty=1.3, seed=4)
    assert rows_of(generate(model, PROMPTS, tokens=12, sampling=other)) != together[::3]


def test_two_prompts_have_other_random_numbers():
    numbers = Uniforms(0, ["0 of [7]", "0 of [7, 1]", "0 of [7]"], tokens=ROOM, device=torch.device("cpu"))
    numbers.refill()
    first, second, same = numbers.next()
    assert first == same != second


@pytest.mark.parametrize("attention", BOUNDED)
def test_a_bounded_state_is_the_same_size_after_300_tokens_as_after_3(attention):
    model = model_of(attention, depth=1, dtype=torch.float32)
    few, many = (Decoder(model, [[BEGIN] * (n - 2)], tokens=3) for n in (3, 300))
    for _ in range(2):
        next(few)
        next(many)
    places = [x.data_ptr() for x in tensors(many.state)]
    next(few)
    next(many)
    assert [x.shape for x in tensors(few.state)] == [x.shape for x in tensors(many.state)]
    assert [x.data_ptr() for x in tensors(many.state)] == places


@pytest.mark.parametrize("attention", ["linear", "local"])
def test_memory_is_the_same_after_any_number_of_tokens(attention):
    decoder = Decoder(model_of(attention, depth=1, dtype=torch.float32), [[BEGIN]], tokens=2 * ROOM)
    for _ in range(3):
        next(decoder)
    places = [(x.data_ptr(), x.shape) for x in tensors(decoder.state)]
    assert sum(1 for _ in decoder) == 2 * ROOM - 3
    assert [(x.data_ptr(), x.shape) for x in tensors(decoder.state)] == places


def test_room_is_made_block_by_block(monkeypatch):
    monkeypatch.setattr(generation, "ROOM", 4)
    model = model_of("softmax")
    decoder = Decoder(model, PROMPTS, tokens=11, sampling=GREEDY)
    rows = torch.stack([step.ids for step in decoder], 1).tolist()
    assert rows == [recomputed(model, prompt, GREEDY, tokens=11) for prompt in PROMPTS]
    assert decoder.state.blocks[0].k.shape[2] == max(map(len, PROMPTS)) + 11


def test_a_state_without_room_is_made_anew(monkeypatch):
    monkeypatch.setattr(SoftmaxAttention, "reserve", Mechanism.reserve)
    model = model_of("softmax")
    expected = [recomputed(model, prompt, SAMPLED, tokens=6) for prompt in PROMPTS]
    assert rows_of(generate(model, PROMPTS, tokens=6, sampling=SAMPLED)) == expected


@pytest.mark.parametrize("attention", ["softmax", "linear", "local", "compressive"])
def test_where_nobody_looks_the_tokens_are_the_same(attention):
    model, stop = model_of(attention), [[3]]
    expected = generate(model, PROMPTS, tokens=40, sampling=SAMPLED, stop=stop)
    with without_waiting():
        assert_close(generate(model, PROMPTS, tokens=40, sampling=SAMPLED, stop=stop), expected)


@pytest.mark.parametrize("attention", ["softmax", "linear", "local", "gated-delta", "compressive"])
def test_decoding_waits_for_no_device(attention):
    model = model_of(attention, depth=1, dtype=torch.float32).to("meta")
    decoder = Decoder(model, PROMPTS, tokens=30, sampling=SAMPLED, stop=[[3, 3], [6]], samples=2)
    next(decoder)
    with no_waiting():
        next(decoder)
        decoder.read()
        decoder.pick()


def test_tokens_come_one_by_one_until_all_rows_have_ended():
    model = model_of()
    whole = generate(model, PROMPTS, tokens=30, sampling=SAMPLED, stop=[[2]])
    steps = list(Decoder(model, PROMPTS, tokens=30, sampling=SAMPLED, stop=[[2]]))
    assert len(steps) == whole.tokens.shape[1] < 30
    assert_close(torch.stack([step.ids for step in steps], 1), whole.tokens)
    assert_close(torch.stack([step.valid for step in steps]).sum(0), whole.lengths)
    assert all(row[-1] == 2 and 2 not in row[:-1] for row in rows_of(whole))


def test_a_stop_is_among_new_tokens_alone():
    model = model_of()
    (row,) = rows_of(generate(model, [[BEGIN, 2]], tokens=3, sampling=GREEDY))
    stop = [[2, row[0]]]  # which begins in the prompt
    assert rows_of(generate(model, [[BEGIN, 2]], tokens=3, sampling=GREEDY, stop=stop)) == [row]


def test_no_gradient_is_kept():
    model = model_of()
    decoder = Decoder(model, PROMPTS, tokens=3)
    for step in decoder:
        assert not step.ids.is_inference()
    assert not any(x.requires_grad for x in tensors(decoder.state))


@pytest.mark.parametrize(
    "sampling",
    [
        SamplingConfig(),
        SamplingConfig(temperature=0.5),
        SamplingConfig(top_k=3),
        SamplingConfig(top_p=0.6),
        SamplingConfig(top_p=1e-9),
        SamplingConfig(temperature=2, top_k=99, top_p=0.8),
    ],
    ids=repr,
)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_tokens_are_drawn_as_by_hand(sampling, dtype):
    logits = 2 * torch.randn(5, 9, dtype=dtype)
    logits[1, 3:6] = logits[1].max()  # of equal ones the first
    uniforms = [0.0, *torch.rand(20).tolist(), 1 - 2**-24]
    for uniform in uniforms:
        drawn = draw(logits, sampling, torch.full((5, 1), uniform)).tolist()
        assert drawn == [next_by_hand(row.double(), [], sampling, uniform) for row in logits]


def test_the_largest_number_draws_a_token_that_is_kept():
    logits = torch.randn(200, 4000, generator=torch.Generator().manual_seed(1))
    drawn = draw(logits, SamplingConfig(top_k=30), torch.full((200, 1), 1 - 2**-24))
    ranks = (logits > logits.gather(1, drawn[:, None])).sum(1)
    assert ranks.max() == 29


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"prompts": []}, "there is no prompt: give at least one"),
        ({"prompts": [[1], []]}, "prompt 1 is empty: give at least the token that sequences begin with"),
        ({"prompts": [[1, 8]]}, "prompt 0 has tokens from 1 to 8: they go from 0 to 7"),
        ({"tokens": 0}, "tokens must be at least 1, not 0"),
        ({"samples": 0}, "samples must be at least 1, not 0"),
        ({"stop": [[1], []]}, "a stop has at least 1 token, and one of [[1], []] has none: leave it out"),
        ({"model": model_of().train()}, "in training mode, in which dropout is on: call its eval() before"),
        (
            {"model": model_of(causal=False)},
            "'linear' sees the future here: generate with a model",
        ),
        ({"model": model_of("poolingformer")}, "'poolingformer' cannot generate, since it has no stream"),
        (
            {"model": model_of(positions="learnt", max_len=12), "tokens": 5},
            "a prompt of 9 tokens and 5 after it go beyond learnt positions, which end at max_len=12",
        ),
    ],
)
def test_what_cannot_be_generated_is_refused_at_once(changed, message):
    given = {"model": model_of(), "prompts": PROMPTS, "tokens": 3, **changed}
    with pytest.raises(ValueError, match=re.escape(message)):
        Decoder(given.pop("model"), given.pop("prompts"), **given)


def test_a_model_that_answers_once_generates_nothing():
    config = model_of().config
    model = SequenceModel(
        SequenceModelConfig(fields=config.fields, readout=Readout(outputs=3), encoder=config.encoder)
    )
    with pytest.raises(ValueError, match="answers at each token which one is next"):
        generate(model.eval(), PROMPTS, tokens=3)
