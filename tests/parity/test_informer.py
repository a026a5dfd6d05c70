"""Informer's layers beside those of transformers."""

import pytest
import torch
from torch.testing import assert_close

from subquad.nn.layers.informer import InformerEncoder
from subquad.nn.layers.layer import LayerConfig
from subquad.nn.sequence import make_sequence

theirs_module = pytest.importorskip("transformers.models.informer.modeling_informer")
DIM, HEADS = 16, 2


@pytest.mark.parametrize("length", [23, 24])
@torch.no_grad()
def test_a_layer_of_the_encoder_and_what_it_distils_are_those_of_transformers(length):
    from transformers import InformerConfig

    config = InformerConfig(
        prediction_length=4,
        d_model=DIM,
        encoder_attention_heads=HEADS,
        encoder_ffn_dim=4 * DIM,
        attention_type="full",
        dropout=0.0,
        attention_dropout=0.0,
        activation_dropout=0.0,
        attn_implementation="eager",  # pyright: ignore[reportCallIssue]  # of all configurations
    )
    torch.manual_seed(1)
    block = theirs_module.InformerEncoderLayer(config).double().eval()
    convolution = theirs_module.InformerConvLayer(DIM).double().eval()
    for module in (block, convolution):
        for parameter in module.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
    torch.nn.init.normal_(convolution.norm.running_mean)

    ours = InformerEncoder(
        LayerConfig(dim=DIM, heads=HEADS, depth=2), inside="softmax", norm="batch"
    ).double()
    parts = [block.self_attn.q_proj, block.self_attn.k_proj, block.self_attn.v_proj]
    weights = {
        "attention.in_proj_weight": torch.cat([part.weight for part in parts]),
        "attention.in_proj_bias": torch.cat([part.bias for part in parts]),
        "convolution.weight": convolution.downConv.weight.transpose(1, 2).flatten(1),
        "convolution.bias": convolution.downConv.bias,
    }
    modules = {
        "attention.out_proj": block.self_attn.out_proj,
        "attention_norm": block.self_attn_layer_norm,
        "mlp.0": block.fc1,
        "mlp.2": block.fc2,
        "mlp_norm": block.final_layer_norm,
        "norm": convolution.norm,
    }
    for place, part in modules.items():
        weights |= {f"{place}.{name}": x for name, x in part.state_dict().items()}
    ours.load_state_dict(weights)
    x = torch.randn(2, length, DIM, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    out = ours.eval()(make_sequence(x)[0])
    assert_close(out.values, convolution(block(x, attention_mask=None)))
