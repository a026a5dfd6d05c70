"""Documents that are packed into rows come out as if each were alone."""

import pytest
import torch
from mechanism_names import ONE_OF_EACH_FILE
from torch.testing import assert_close

from subquad.fields import Events, Readout
from subquad.nn.documents import batches, boundaries_of, by_document, documents_of, require_documents
from subquad.nn.encoder import Encoder, EncoderConfig
from subquad.nn.model import SequenceModel, SequenceModelConfig
from subquad.nn.multihead import MultiheadAttention
from subquad.registry import catalog

# lengths 7, 1 and 16; and 9, a document of 8 around padding, and 4 that come between its tokens
DOCUMENTS = torch.tensor([[5] * 7 + [2] + [9] * 16, [0] * 9 + [7] * 5 + [3] * 4 + [7] * 6])
REAL = torch.ones(2, 24, dtype=torch.bool)
REAL[1, 11:14] = False
MIXED = ["local:width=3&taylor:width=3", "local:width=3+gated-delta"]


def encoder(attention: str, *, depth: int = 1) -> Encoder:
    cls = catalog().get(attention)
    torch.manual_seed(0)
    config = EncoderConfig(
        dim=8,
        depth=depth,
        heads=2,
        attention=attention,
        causal=cls is None or not cls.traits.bidirectional,
        options={} if cls is None else dict(cls.traits.tiny),
        positions="learnt",
        max_len=16,
    )
    return Encoder(config).double()


def tokens() -> torch.Tensor:
    x = torch.randn(2, 24, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    return x.masked_fill(~REAL[..., None], torch.nan)


def one_by_one(encode, x):
    """Of the real tokens of each document."""
    for row in range(len(x)):
        for number in DOCUMENTS[row].unique():
            chosen = REAL[row] & (DOCUMENTS[row] == number)
            yield row, chosen, encode(x[row, chosen][None])[0]


@pytest.mark.parametrize("attention", [*ONE_OF_EACH_FILE, *MIXED])
def test_packed_documents_equal_the_documents_one_by_one(attention):
    model, weight = encoder(attention, depth=1 + attention.count("+")), torch.linspace(-1, 1, 8).double()
    x = tokens().requires_grad_()
    packed = model(x, REAL, documents=DOCUMENTS)
    leaves = [x, *model.parameters()]
    gradients = torch.autograd.grad((packed[REAL] * weight).sin().sum(), leaves)
    loss = torch.zeros((), dtype=torch.float64)
    for row, chosen, alone in one_by_one(model, x):
        assert_close(packed[row, chosen], alone)
        loss = loss + (alone * weight).sin().sum()
    assert_close(gradients, torch.autograd.grad(loss, leaves))


def test_a_layer_keeps_documents_apart():
    layer = MultiheadAttention(8, 2, rotary=True, causal=True).double()
    x = tokens()
    out, _ = layer(x, x, x, key_padding_mask=~REAL, documents=DOCUMENTS)
    for row, chosen, alone in one_by_one(lambda y: layer(y, y, y)[0], x):
        assert_close(out[row, chosen], alone)
    turned = MultiheadAttention(8, 2, rotary=True, causal=True, batch_first=False).double()
    turned.load_state_dict(layer.state_dict())
    y = x.transpose(0, 1)
    assert_close(turned(y, y, y, key_padding_mask=~REAL, documents=DOCUMENTS)[0].transpose(0, 1), out)
    alone, _ = layer(x[0], x[0], x[0], documents=DOCUMENTS[0])
    assert_close(alone, out[0])


def test_a_model_answers_packed_documents_token_by_token():
    def model(per):
        encoder = EncoderConfig(dim=8, depth=1, heads=2, causal=True, max_len=16)
        fields, readout = Events(vocabularies=(4,), numeric=0), Readout(outputs=3, per=per)
        return SequenceModel(SequenceModelConfig(fields=fields, readout=readout, encoder=encoder)).double()

    ids = torch.randint(4, (2, 24, 1), generator=torch.Generator().manual_seed(0))
    empty = torch.zeros(2, 24, 0, dtype=torch.float64)
    answered = model("token")
    out = answered((ids, empty), REAL, documents=DOCUMENTS)
    for row, chosen, alone in one_by_one(lambda y: answered((y, empty[:1, : y.shape[1]]), None), ids):
        assert_close(out[row, chosen], alone)
    with pytest.raises(ValueError, match="packed documents are answered per token, and this model"):
        model("sequence")((ids, empty), REAL, documents=DOCUMENTS)


@pytest.mark.parametrize("valid", [None, REAL])
def test_less_than_half_of_a_batch_is_padding(valid):
    sizes = []
    for places, real in batches(DOCUMENTS, valid):
        sizes.append(places.shape[1])
        assert real is None or 2 * real.sum() > real.numel()
    assert sizes == sorted(sizes)


def test_all_padding_and_no_rows_give_zeros():
    model = encoder("softmax")
    for rows, length in ((2, 24), (0, 24), (2, 0)):
        x = torch.full((rows, length, 8), torch.nan, dtype=torch.float64)
        documents, padding = torch.zeros(rows, length, dtype=torch.int64), torch.zeros(rows, length) > 0
        assert_close(model(x, padding, documents=documents), torch.zeros_like(x))


@pytest.mark.parametrize(
    "documents", [DOCUMENTS[:1], DOCUMENTS[:, 1:], DOCUMENTS.double(), DOCUMENTS > 3, DOCUMENTS.tolist()]
)
def test_numbers_that_are_not_those_of_tokens_are_refused(documents):
    with pytest.raises(ValueError, match=r"documents are whole numbers of shape \(2, 24\) \(batch, tokens\)"):
        require_documents(documents, tokens())


def test_documents_are_packed_in_self_attention_alone():
    layer, x = MultiheadAttention(8, 2), torch.randn(2, 24, 8)
    with pytest.raises(ValueError, match="documents are packed in self-attention alone: pass one tensor"):
        layer(x, x + 1, x + 1, documents=DOCUMENTS)


def test_what_gives_out_fewer_tokens_is_refused():
    with pytest.raises(ValueError, match="packed documents come out token by token"):
        by_document(lambda x, valid: x[:, ::2], tokens(), valid=REAL, documents=DOCUMENTS)


def test_boundaries_and_numbers_say_the_same():
    boundaries = torch.tensor([0, 7, 8, 24], dtype=torch.int32)
    assert_close(boundaries_of(DOCUMENTS[:1]), boundaries)
    assert_close(documents_of(boundaries, length=24), torch.tensor([[0] * 7 + [1] + [2] * 16]))
    for wrong in ([0, 7, 23], [1, 24], [0, 9, 8, 24], []):
        with pytest.raises(ValueError, match="boundaries go from 0 up to the 24 tokens of the row"):
            documents_of(torch.tensor(wrong, dtype=torch.int64), length=24)
    with pytest.raises(ValueError, match="and one is in several"):
        boundaries_of(DOCUMENTS[1:])
