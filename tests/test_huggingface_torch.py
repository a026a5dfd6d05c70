"""Models of torch.nn layers by the same `convert` as those of transformers."""

import copy
from typing import Any

import pytest
import torch
from pretrained import SAMPLES
from torch import Tensor, nn
from torch.testing import assert_close

import subquad.integrations.huggingface as hf
from subquad import MultiheadAttention

pytestmark = pytest.mark.filterwarnings(
    "ignore:The PyTorch API of nested tensors",  # torch makes them by itself
    "ignore:enable_nested_tensor is True",  # and says when it does not
)


def encoder(*, nested: bool = False) -> nn.TransformerEncoder:
    torch.manual_seed(1)
    layer = nn.TransformerEncoderLayer(32, 4, 48, dropout=0.0, batch_first=True)
    model = nn.TransformerEncoder(layer, 2, enable_nested_tensor=nested)
    with torch.no_grad():
        for x in model.parameters():
            if x.ndim > 1:
                x.copy_(torch.randn_like(x) * 0.4)
    return model


def inputs() -> tuple[Tensor, Tensor]:
    """Tokens, and where there is padding."""
    padding = torch.zeros(2, 11, dtype=torch.bool)
    padding[0, 7:] = padding[1, 9:] = True
    return torch.randn(2, 11, 32), padding


@pytest.mark.parametrize("name", ["softmax", "linear", "performer", "hedgehog", "nystromformer"])
@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("grad", [False, True])
def test_padding_is_honoured_where_torch_would_take_its_fast_path(name: str, nested: bool, grad: bool):
    model, (x, padding) = encoder(nested=nested).eval(), inputs()
    weights = dict(model.named_parameters())
    with torch.set_grad_enabled(grad):
        before = model(x, src_key_padding_mask=padding)
        assert hf.convert(model, name) is model
        out = model(x, src_key_padding_mask=padding)
        real = ~padding
        for row, length in enumerate((7, 9)):
            assert_close(out[row : row + 1, :length], model(x[row : row + 1, :length]), rtol=1e-3, atol=1e-3)
    own = dict(model.named_parameters())
    assert all(own[key] is value for key, value in weights.items())
    difference = (out - before)[:, : before.shape[1]][real[:, : before.shape[1]]].abs().max()
    assert difference < 1e-4 if name == "softmax" else difference > 1e-2


@pytest.mark.parametrize("hint", [None, True])
def test_a_causal_mask_needs_a_causal_mechanism(hint: bool | None):
    model, (x, _) = encoder().eval(), inputs()
    mask = nn.Transformer.generate_square_subsequent_mask(11)
    before = model(x, mask=mask, is_causal=hint)
    causal = hf.convert(copy.deepcopy(model), causal=True)
    assert_close(causal(x, mask=mask, is_causal=hint), before, rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match="build it with causal=True"):
        hf.convert(model, "linear")(x, mask=mask, is_causal=hint)


def test_attention_inside_of_any_module_is_chosen_by_name_and_gets_its_length():
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.MultiheadAttention(32, 4, batch_first=True)
            self.second = nn.MultiheadAttention(32, 4, batch_first=True)

    model = hf.convert(Own(), "linformer", only="second", max_len=11, rank=4)
    assert type(model.first) is nn.MultiheadAttention
    assert isinstance(model.second, MultiheadAttention)
    assert model.second.mechanism.dims.max_len == 11


CALLS: dict[str, Any] = {
    "restore": hf.restore,
    "transfer": lambda model: hf.transfer(model, []),
    "distil": lambda model: hf.distil(model, []),
    "fidelity": lambda model: hf.fidelity(model, "linear", {}),
    "Cache": hf.Cache,
}


@pytest.mark.parametrize("function", CALLS)
def test_what_needs_a_model_of_transformers_says_so(function: str):
    model = hf.convert(encoder(), "hedgehog")
    with pytest.raises(ValueError, match=r"is no transformers\.PreTrainedModel: .*can be converted, .*loop"):
        CALLS[function](model)


def test_a_model_without_attention_is_refused():
    with pytest.raises(ValueError, match=r"a Linear is no transformers\.PreTrainedModel"):
        hf.convert(nn.Linear(3, 3), "linear")
    with pytest.raises(ValueError, match="the model is the layer itself"):
        hf.convert(nn.MultiheadAttention(8, 2), "linear")


def test_a_model_of_transformers_within_another_is_not_passed_by():
    model = nn.ModuleList([SAMPLES["bert"].model(), nn.MultiheadAttention(8, 2)])
    with pytest.raises(ValueError, match=r"a ModuleList is no .*: hand in the model inside of it"):
        hf.convert(model, "linear")
