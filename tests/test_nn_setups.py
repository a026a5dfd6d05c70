"""Layers and models in training set-ups: copied, stored, built on no device, given nothing."""

import copy
import io
import pickle

import pytest
import torch
from mechanism_names import ONE_OF_EACH_FILE, STREAMING
from torch.testing import assert_close

from subquad import MultiheadAttention, catalog
from subquad.features.generalised import FUNCTIONS
from subquad.fields import Events, Readout
from subquad.memories.compression import KINDS as KINDS_OF_SLOTS
from subquad.nn.encoder import Encoder, EncoderConfig
from subquad.nn.model import SequenceModel, SequenceModelConfig
from subquad.nn.positions import KINDS

OPTIONS = [  # of which a module keeps more than numbers
    *(("performer", {"map": name}) for name in FUNCTIONS),
    *(("feedforward-kernel", {"activation": name}) for name in ("softplus", "gelu", "sigmoid")),
    *(("pattern", {"expr": expr}) for expr in ("Local(4) | Random(2)", "PerHead(Local(2), Global(1))")),
    *(("compressive", {"compression": name}) for name in KINDS_OF_SLOTS),
]


def streams(attention):
    return attention in STREAMING


def layer(attention, **options):
    torch.manual_seed(0)
    options = options or dict(catalog()[attention].traits.tiny)
    causal = "values" if not catalog()[attention].traits.bidirectional else False
    return MultiheadAttention(16, 2, attention, causal=causal, max_len=64, **options)


def config(attention, *, positions="none"):
    traits = catalog()[attention].traits
    return EncoderConfig(
        dim=8,
        depth=2,
        heads=2,
        attention=attention,
        options=dict(traits.tiny),
        causal=streams(attention),
        positions=positions,
        max_len=64,
    )


def classifier(attention, *, positions="none"):
    torch.manual_seed(0)
    return SequenceModel(
        SequenceModelConfig(
            fields=Events(vocabularies=(5,), numeric=2),
            readout=Readout(outputs=3),
            encoder=config(attention, positions=positions),
        )
    )


def events(*, batch=2, length=21):
    generator = torch.Generator().manual_seed(0)
    numbers = torch.randn(batch, length, 2, generator=generator)
    return torch.randint(5, (batch, length, 1), generator=generator), numbers


def tokens(*, batch=2, length=21, width=16):
    return torch.randn(batch, length, width, generator=torch.Generator().manual_seed(0), requires_grad=True)


def pickled(module):
    return pickle.loads(pickle.dumps(module))


def stored(module):
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


COPIES = [copy.deepcopy, pickled, stored]


@pytest.mark.parametrize("make_copy", COPIES)
@pytest.mark.parametrize(("attention", "options"), OPTIONS)
def test_a_layer_with_any_option_is_copied_after_use(attention, options, make_copy):
    used, x = layer(attention, **options), tokens()
    used(x, x, x)[0].sum().backward()
    assert_close(make_copy(used)(x, x, x)[0], used(x, x, x)[0], rtol=0, atol=0)


@pytest.mark.parametrize("make_copy", COPIES)
@pytest.mark.parametrize("attention", ONE_OF_EACH_FILE)
def test_a_classifier_is_copied_after_use(attention, make_copy):
    used = classifier(attention, positions="learnt")
    used(events(), None).sum().backward()
    twin = make_copy(used).eval()
    assert_close(twin(events(), None), used.eval()(events(), None), rtol=0, atol=0)


@pytest.mark.parametrize("assign", [False, True])
@pytest.mark.parametrize("attention", ONE_OF_EACH_FILE)
def test_a_classifier_built_on_no_device_is_the_one_whose_weights_it_is_given(attention, assign):
    saved = classifier(attention, positions="learnt").eval()
    with torch.device("meta"):
        model = classifier(attention, positions="learnt").eval()
    if not assign:
        model.to_empty(device="cpu")
        for buffer in model.buffers():
            buffer.fill_(7)
    model.load_state_dict(saved.state_dict(), assign=assign)
    assert_close(model(events(), None), saved(events(), None), rtol=0, atol=0)


@pytest.mark.parametrize("size", [{"batch": 0}, {"length": 0}], ids=["no rows", "no tokens"])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("attention", ONE_OF_EACH_FILE)
def test_a_layer_makes_nothing_of_nothing(attention, masked, size):
    x = tokens(**size)
    mask = torch.zeros(x.shape[:2], dtype=torch.bool) if masked else None
    out, _ = layer(attention)(x, x, x, key_padding_mask=mask)
    assert out.shape == x.shape
    out.sum().backward()


@pytest.mark.parametrize("size", [{"batch": 0}, {"length": 0}], ids=["no rows", "no tokens"])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("positions", [kind for kind in KINDS if kind != "rotary"])
@pytest.mark.parametrize("attention", ["linear", "bigbird", "infinity"])
def test_an_encoder_makes_nothing_of_nothing(attention, positions, masked, size):
    encoder, x = Encoder(config(attention, positions=positions)), tokens(width=8, **size)
    valid = torch.ones(x.shape[:2], dtype=torch.bool) if masked else None
    outputs = [encoder(x, valid)]
    if streams(attention):
        out, state = encoder.step(x, valid=valid)
        outputs += [out, encoder.step(x, valid=valid, state=state)[0]]
    assert all(out.shape == x.shape for out in outputs)
    (torch.stack(outputs).sum() + encoder.penalty()).backward()


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("attention", ["linear", "bigbird", "infinity"])
def test_a_classifier_takes_no_rows(attention, masked):
    model, (ids, numbers) = classifier(attention), events(batch=0)
    out = model((ids, numbers), torch.ones(0, 21, dtype=torch.bool) if masked else None)
    assert out.shape == (0, 3)
    out.sum().backward()


def test_a_sequence_without_a_token_gets_the_logits_of_a_mean_of_zero():
    model = classifier("linear")
    ids, numbers = events(length=0)
    expected = model(events(), torch.zeros(2, 21, dtype=torch.bool))
    for valid in (None, torch.ones(2, 0, dtype=torch.bool)):
        assert_close(model((ids, numbers), valid), expected)
