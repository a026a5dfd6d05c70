"""The Conformer block beside that of transformers, which is Wav2Vec2's."""

from typing import Any

import pytest
import torch
from torch.testing import assert_close

from subquad.nn.layers.conformer import Conformer
from subquad.nn.layers.layer import LayerConfig
from subquad.nn.sequence import make_sequence

theirs_module = pytest.importorskip("transformers.models.wav2vec2_conformer.modeling_wav2vec2_conformer")
DIM, HEADS, KERNEL = 16, 2, 5


def their_block() -> torch.nn.Module:
    from transformers import Wav2Vec2ConformerConfig

    config = Wav2Vec2ConformerConfig(
        hidden_size=DIM,
        num_attention_heads=HEADS,
        intermediate_size=4 * DIM,
        conv_depthwise_kernel_size=KERNEL,
        hidden_act="swish",
        position_embeddings_type=None,
        attn_implementation="eager",  # pyright: ignore[reportCallIssue]  # of all configurations
        attention_dropout=0.0,
        hidden_dropout=0.0,
        activation_dropout=0.0,
        conformer_conv_dropout=0.0,
    )
    torch.manual_seed(1)
    block = theirs_module.Wav2Vec2ConformerEncoderLayer(config).double().eval()
    for parameter in block.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    torch.nn.init.normal_(block.conv_module.batch_norm.running_mean)
    torch.nn.init.uniform_(block.conv_module.batch_norm.running_var, 0.5, 2)
    return block


def our_block(theirs: Any) -> Conformer:
    config = LayerConfig(dim=DIM, heads=HEADS)
    ours = Conformer(config, kernel=KERNEL, norm="batch").double().eval()
    attention, convolution = theirs.self_attn, theirs.conv_module
    parts = [attention.linear_q, attention.linear_k, attention.linear_v]
    weights = {
        "attention.in_proj_weight": torch.cat([part.weight for part in parts]),
        "attention.in_proj_bias": torch.cat([part.bias for part in parts]),
        "convolution.gate.weight": convolution.pointwise_conv1.weight[..., 0],
        "convolution.depthwise.weight": convolution.depthwise_conv.weight,
        "convolution.mix.weight": convolution.pointwise_conv2.weight[..., 0],
    }
    modules = {
        "attention.out_proj": attention.linear_out,
        "attention_norm": theirs.self_attn_layer_norm,
        "convolution.norm_before": convolution.layer_norm,
        "convolution.norm": convolution.batch_norm,
        "norm": theirs.final_layer_norm,
        "first_half.0": theirs.ffn1_layer_norm,
        "first_half.1": theirs.ffn1.intermediate_dense,
        "first_half.4": theirs.ffn1.output_dense,
        "second_half.0": theirs.ffn2_layer_norm,
        "second_half.1": theirs.ffn2.intermediate_dense,
        "second_half.4": theirs.ffn2.output_dense,
    }
    for place, part in modules.items():
        weights |= {f"{place}.{name}": x for name, x in part.state_dict().items()}
    with torch.no_grad():
        missing = ours.load_state_dict(weights, strict=False).missing_keys
        for name in missing:  # their convolutions have no bias
            ours.get_parameter(name).zero_()
    assert {name.rpartition(".")[2] for name in missing} == {"bias"}
    return ours


@torch.no_grad()
def test_the_block_is_that_of_transformers():
    theirs = their_block()
    x = torch.randn(2, 24, DIM, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    assert_close(our_block(theirs)(make_sequence(x)[0]).values, theirs(x))
