"""Small models of transformers, with weights large enough for attention to matter, and their inputs."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    BertConfig,
    BertModel,
    DistilBertConfig,
    DistilBertModel,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    ModernBertConfig,
    ModernBertModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    RobertaConfig,
    RobertaModel,
    T5Config,
    T5ForConditionalGeneration,
    ViTConfig,
    ViTModel,
    WhisperConfig,
    WhisperForConditionalGeneration,
)

Inputs = Mapping[str, Tensor]

SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
}
SMALL: dict[str, Any] = {**SIZES, "vocab_size": 99, "max_position_embeddings": 64, "initializer_range": 0.5}
GROUPED: dict[str, Any] = {**SMALL, "num_key_value_heads": 2, "pad_token_id": 0}
WINDOWED: dict[str, Any] = {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1}
DEEPER: dict[str, Any] = {**SMALL, "num_hidden_layers": 4, "global_attn_every_n_layers": 2}
DECODER: dict[str, Any] = {"decoder_start_token_id": 0}
SPECIAL: dict[str, Any] = dict.fromkeys(("bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id"), 1)
SEQ2SEQ: dict[str, Any] = {
    **dict.fromkeys(("encoder_layers", "decoder_layers"), 2),
    **dict.fromkeys(("encoder_attention_heads", "decoder_attention_heads"), 4),
    **dict.fromkeys(("encoder_ffn_dim", "decoder_ffn_dim"), 48),
    **{"d_model": 32, "vocab_size": 99, "init_std": 0.5, "pad_token_id": 0},
}


def of_tokens() -> Inputs:
    """Two rows, one with padding on the left and one with some on the right."""
    valid = torch.ones(2, 11, dtype=torch.int64)
    valid[0, 8:] = 0
    valid[1, :4] = 0
    return {"input_ids": torch.randint(3, 99, (2, 11)), "attention_mask": valid}


def of_pairs() -> Inputs:
    return {**of_tokens(), "decoder_input_ids": torch.randint(3, 99, (2, 7))}


def of_pictures() -> Inputs:
    return {"pixel_values": torch.randn(2, 3, 8, 8)}


def of_sounds() -> Inputs:
    return {"input_features": torch.randn(2, 8, 24), "decoder_input_ids": torch.randint(3, 99, (2, 7))}


@dataclass(frozen=True)
class Sample:
    """A kind of model, how to make one, and how to call it."""

    build: Callable[[], Any]
    inputs: Callable[[], Inputs]
    only: str = "*"  # the layers that can be converted

    def model(self, implementation: str = "sdpa") -> Any:
        torch.manual_seed(1)
        model = self.build().eval()
        model.set_attn_implementation(implementation)
        return model


SAMPLES: Mapping[str, Sample] = {
    "bert": Sample(lambda: BertModel(BertConfig(**SMALL)), of_tokens),
    "roberta": Sample(lambda: RobertaModel(RobertaConfig(**SMALL)), of_tokens),
    "distilbert": Sample(
        lambda: DistilBertModel(
            DistilBertConfig(
                dim=32, n_layers=2, n_heads=4, hidden_dim=48, vocab_size=99, initializer_range=0.5
            )
        ),
        of_tokens,
    ),
    "modernbert": Sample(
        lambda: ModernBertModel(
            ModernBertConfig(
                **DEEPER,
                local_attention=6,
                pad_token_id=0,
                **SPECIAL,
            )
        ),
        of_tokens,
    ),
    "vit": Sample(
        lambda: ViTModel(ViTConfig(**SIZES, image_size=8, patch_size=2, initializer_range=0.5)), of_pictures
    ),
    "gpt2": Sample(
        lambda: GPT2LMHeadModel(
            GPT2Config(
                n_embd=32,
                n_layer=2,
                n_head=4,
                vocab_size=99,
                n_positions=256,
                bos_token_id=1,
                eos_token_id=2,
                initializer_range=0.3,
            )
        ),
        of_tokens,
    ),
    "llama": Sample(lambda: LlamaForCausalLM(LlamaConfig(**GROUPED)), of_tokens),
    "qwen2": Sample(lambda: Qwen2ForCausalLM(Qwen2Config(**GROUPED, **WINDOWED)), of_tokens),
    "bart": Sample(lambda: BartForConditionalGeneration(BartConfig(**SEQ2SEQ)), of_pairs),
    "whisper": Sample(
        lambda: WhisperForConditionalGeneration(
            WhisperConfig(
                **{**SEQ2SEQ, "bos_token_id": 1, "eos_token_id": 2},
                num_mel_bins=8,
                max_source_positions=12,
                max_target_positions=64,
                decoder_start_token_id=1,
            )
        ),
        of_sounds,
    ),
    "t5": Sample(
        lambda: T5ForConditionalGeneration(
            T5Config(
                d_model=32,
                d_kv=8,
                num_layers=2,
                num_heads=4,
                d_ff=48,
                vocab_size=99,
                initializer_factor=3.0,
                **DECODER,
            )
        ),
        of_pairs,
        only="*EncDecAttention",
    ),
}


@torch.no_grad()
def run(model: Any, inputs: Inputs, **options: Any) -> Tensor:
    """The first thing that a model gives, with zeros where its own tokens are padding."""
    out = model(**inputs, **options)[0]
    if "decoder_input_ids" in inputs or "attention_mask" not in inputs:
        return out
    return out * inputs["attention_mask"][..., None]
