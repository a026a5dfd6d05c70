"""The model of sequences."""

from dataclasses import replace

import pytest
import torch
from mechanism_names import ONE_OF_EACH_FILE, STREAMING
from torch.testing import assert_close

from subquad.fields import Events, Pair, Readout, Tokens
from subquad.nn.encoder import EncoderConfig
from subquad.nn.model import PairHead, SequenceModel, SequenceModelConfig
from subquad.registry import catalog

WORDS = Tokens(vocabulary=9)
VALID = torch.tensor([[False, True, True, False, True], [True] * 5, [False] * 5])


def classifier(attention: str = "softmax", *, vocabularies=(4, 7), numeric=2, **chosen) -> SequenceModel:
    torch.manual_seed(0)
    cls = catalog()[attention]
    asked = {"dim": 8, "depth": 2, "heads": 2, "positions": "learnt", "max_len": 5, **chosen}
    encoder = EncoderConfig(
        attention=attention, causal=not cls.traits.bidirectional, options=dict(cls.traits.tiny), **asked
    )
    return SequenceModel(
        SequenceModelConfig(
            fields=Events(vocabularies=vocabularies, numeric=numeric),
            readout=Readout(outputs=3),
            encoder=encoder,
        )
    )


def events(vocabularies=(4, 7), numeric=2) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    ids = [torch.randint(size, (3, 5), generator=generator) for size in vocabularies]
    categorical = torch.stack(ids, -1) if ids else torch.zeros(3, 5, 0, dtype=torch.int64)
    return categorical, torch.randn(3, 5, numeric, generator=generator)


@pytest.mark.parametrize("attention", ONE_OF_EACH_FILE)
def test_padding_anywhere_counts_as_absent(attention):
    model, (categorical, numeric) = classifier(attention), events()
    dirty_ids = categorical.masked_fill(~VALID[..., None], 99)
    dirty_numbers = numeric.masked_fill(~VALID[..., None], torch.nan)
    out = model((dirty_ids, dirty_numbers), VALID)
    out.square().sum().backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)
    real = VALID[0]
    alone = model((categorical[:1, real], numeric[:1, real]), VALID[:1, real])
    assert out.shape == (3, 3)
    assert_close(out[0], alone[0])


@pytest.mark.parametrize("attention", ONE_OF_EACH_FILE)
def test_a_sequence_without_events_gives_finite_logits_and_gradients(attention):
    model, (categorical, numeric) = classifier(attention), events()
    out = model((categorical, numeric), torch.zeros_like(VALID))
    out.square().sum().backward()
    assert out.isfinite().all()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


@pytest.mark.parametrize(("vocabularies", "numeric"), [((), 2), ((4,), 0), ((4, 7), 2)])
def test_events_may_have_categories_or_numbers_or_both(vocabularies, numeric):
    model = classifier(vocabularies=vocabularies, numeric=numeric)
    out = model(events(vocabularies, numeric), VALID)
    out.square().sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in model.embedding.parameters())


def test_events_without_columns_are_refused():
    with pytest.raises(ValueError, match="events have no column"):
        Events(vocabularies=(), numeric=0)


def test_every_column_changes_the_answer():
    model, (categorical, numeric) = classifier(), events()
    before = model((categorical, numeric), VALID)
    for column in range(2):
        other = categorical.clone()
        other[..., column] = (other[..., column] + 1) % 4
        assert (model((other, numeric), VALID)[:2] - before[:2]).abs().amax(1).min() > 1e-5
        other = numeric.clone()
        other[..., column] += 1
        assert (model((categorical, other), VALID)[:2] - before[:2]).abs().amax(1).min() > 1e-5


def test_parameters_are_counted_by_part():
    counted = classifier().parameters_by_part()
    embedding, positions, ends = (4 + 7 + 3) * 8, 5 * 8, 2 * 2 * 8 + 3 * 9
    attention, rest = 2 * 4 * 9 * 8, 2 * (2 * 2 * 8 + 32 * 9 + 8 * 33)
    assert counted == {
        "total": embedding + positions + ends + attention + rest,
        "attention": attention,
        "grows_with_length": positions,
    }


@pytest.mark.parametrize("attention", ["softmax", "linear", "performer"])
@pytest.mark.parametrize("max_len", [5, None])
def test_without_tables_nothing_grows_with_length(attention, max_len):
    model = classifier(attention, positions="rotary", max_len=max_len)
    assert model.parameters_by_part()["grows_with_length"] == 0


def test_counting_parameters_draws_no_random_numbers():
    model = classifier()
    before = torch.get_rng_state()
    model.parameters_by_part()
    assert_close(torch.get_rng_state(), before)


def paired(attention: str = "softmax", *, side: Tokens | Events = WORDS, **chosen) -> SequenceModel:
    torch.manual_seed(0)
    model = classifier(attention, **chosen)
    return SequenceModel(replace(model.config, fields=Pair(side=side)))


def pairs() -> torch.Tensor:
    return torch.randint(WORDS.vocabulary, (3, 2, 5), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("attention", ONE_OF_EACH_FILE)
def test_padding_of_either_side_counts_as_absent(attention):
    model, ids = paired(attention), pairs()
    valid = torch.ones_like(ids, dtype=torch.bool)
    valid[0, 0, 3:] = valid[1, 1, 2:] = False
    out = model((ids.masked_fill(~valid, 99),), valid)
    out.square().sum().backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)
    other = ids.masked_fill(~valid, 0)
    other[0, 0, 3:] = 5
    assert_close(model((other,), valid), out)
    assert_close(model((ids[2:],), None), out[2:])


def test_a_pair_is_answered_by_one_encoder_that_sees_each_side_alone():
    model, ids = paired(), pairs()
    assert isinstance(model.head, PairHead)
    seen = []
    model.encoder.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].shape))
    out = model((ids,), None)
    a, b = (
        model.norm(model.encoder(model.embedding((ids[:, side],), None), None).mean(1)) for side in (0, 1)
    )
    assert_close(out, model.head.layers(torch.cat([a, b, a * b, a - b], -1)))
    assert seen == [(6, 5, 8), (3, 5, 8), (3, 5, 8)]


def test_the_order_of_a_pair_may_matter_and_both_sides_do():
    model, ids = paired(), pairs()
    out = model((ids,), None)
    assert (model((ids.flip(1),), None) - out).abs().amax(1).min() > 1e-5
    for side in range(2):
        other = ids.clone()
        other[:, side] = (other[:, side] + 1) % WORDS.vocabulary
        assert (model((other,), None) - out).abs().amax(1).min() > 1e-5


def test_pairs_of_events_are_read_like_pairs_of_tokens():
    side = Events(vocabularies=(4, 7), numeric=2)
    model, fields = paired(side=side), Pair(side=side)
    inputs = fields.sample(size=3, length=5, generator=torch.Generator().manual_seed(1))
    assert [part.shape for part in inputs] == [(3, 2, 5, 2), (3, 2, 5, 2)]
    assert model(inputs, None).shape == (3, 3)


def test_a_pair_is_not_answered_token_by_token():
    config = paired().config
    with pytest.raises(ValueError, match="a pair is answered as a whole, and not per 'token'"):
        replace(config, readout=Readout(outputs=3, per="token"))


@pytest.mark.parametrize("attention", STREAMING)
def test_chunks_of_a_stream_give_what_the_whole_gives(attention):
    torch.manual_seed(0)
    options = dict(catalog()[attention].traits.tiny)
    encoder = EncoderConfig(attention=attention, causal=True, options=options, dim=8, heads=2, max_len=20)
    model = SequenceModel(
        SequenceModelConfig(fields=WORDS, readout=Readout(outputs=9, per="token"), encoder=encoder)
    ).eval()
    ids, valid = torch.randint(9, (2, 20)), torch.rand(2, 20) < 0.8
    whole = model((ids,), valid)
    outputs, state = [], None
    for chunk in (slice(0, 1), slice(1, 12), slice(12, 20)):
        out, state = model.step((ids[:, chunk],), valid[:, chunk], state=state)
        outputs.append(out)
    assert_close(torch.cat(outputs, 1)[valid], whole[valid], atol=1e-4, rtol=1e-4)


def test_a_model_that_answers_once_has_no_stream():
    with pytest.raises(ValueError, match="answered per token"):
        classifier().step(events())
