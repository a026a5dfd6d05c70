"""The attention layers of a pretrained model: where they are, and what can be known of them beforehand."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from subquad.integrations.converted import ConvertedAttention
from subquad.integrations.huggingface.interface import NAME
from subquad.integrations.source import forward_source

HEADS = ("num_attention_heads", "num_heads", "n_heads", "n_head")  # what models call them
HEAD_DIM = ("head_dim", "attention_head_size", "key_value_proj_dim")
MODEL_WIDTH = ("hidden_size", "embed_dim", "dim", "d_model")


@dataclass(frozen=True)
class PretrainedAttention:
    """A layer that attends by the function that its configuration names."""

    name: str  # within `model.base_model`, whatever head stands on that
    module: nn.Module

    @property
    def config(self) -> PreTrainedConfig:
        config = self.module.config
        assert isinstance(config, PreTrainedConfig)
        return config

    @property
    def converted(self) -> ConvertedAttention | None:
        """What `convert` has put beneath it."""
        return getattr(self.module, NAME, None)

    @property
    def index(self) -> int:
        """Its place in a cache."""
        return int(self.module.layer_idx)  # pyright: ignore[reportArgumentType]

    @property
    def heads(self) -> int:
        return self._first("heads", HEADS)

    @property
    def head_dim(self) -> int:
        own = [getattr(self.module, name, None) for name in HEAD_DIM]
        return next((size for size in own if size), None) or self._first("width", MODEL_WIDTH) // self.heads

    @property
    def causal(self) -> bool:
        return bool(getattr(self.module, "is_causal", False))

    @property
    def rotary(self) -> bool:
        """Whether queries and keys turn with their positions."""
        return "apply_rotary" in forward_source(type(self.module))

    @property
    def span(self) -> int | None:
        """How many tokens away a token may be that another one sees, where a window bounds that."""
        # both ways, too, transformers counts the token itself
        of_all = getattr(self.config, "sliding_window", None)
        window = getattr(self.module, "sliding_window", of_all)
        return None if window is None else window - 1

    def unsupported(self) -> Iterator[str]:
        """What softmax does in this layer, and no mechanism would."""
        bias = hasattr(self.module, "has_relative_attention_bias")
        if bias and (self.causal or not getattr(self.module, "is_decoder", False)):
            yield (
                "it adds a bias to scores by position, which a mechanism would ignore; its cross-attention "
                "has none: only='*EncDecAttention'"
            )
        for name in ("attn_logit_softcapping", "logit_cap"):
            if getattr(self.module, name, None) is not None:
                yield f"it bounds its scores ({name}), which a mechanism would ignore"
        if getattr(self.module, "sinks", None) is not None:
            yield "it has learnt sinks among its keys, which a mechanism would ignore"

    def _first(self, what: str, names: tuple[str, ...]) -> int:
        for owner in (self.module, self.config):
            for name in names:
                if isinstance(size := getattr(owner, name, None), int):
                    return size
        raise ValueError(f"{type(self.module).__name__} does not say its {what} by any of {', '.join(names)}")


def attention_layers(model: PreTrainedModel) -> Mapping[str, PretrainedAttention]:
    """All of a model's, by name in the order of the model. Raises `ValueError` where there are none."""
    layers = {
        name: PretrainedAttention(name, module)
        for name, module in model.base_model.named_modules()
        if attends_by_interface(type(module)) and hasattr(module, "config")
    }
    if not layers:
        raise ValueError(f"{type(model).__name__} has no attention that its configuration chooses")
    return layers


def converted_layers(model: PreTrainedModel) -> Mapping[str, ConvertedAttention]:
    """What `convert` has put beneath the layers of a model, by the names of these."""
    layers = attention_layers(model).items()
    return {name: ours for name, layer in layers if (ours := layer.converted) is not None}


def require_pretrained(model: nn.Module) -> PreTrainedModel:
    """The model, or `ValueError` unless its attention is what its configuration names."""
    if not isinstance(model, PreTrainedModel):
        raise ValueError(
            f"a {type(model).__name__} is no transformers.PreTrainedModel: hand in the model inside of it. "
            "Models of timm and of torch.nn layers can be converted, and are trained then by a loop of yours"
        )
    for part in (module for module in model.modules() if isinstance(module, PreTrainedModel)):
        if not part._can_set_attn_implementation():
            raise ValueError(
                f"{type(part).__name__} attends by code of its own, and would ignore a mechanism: take a "
                "model of transformers that calls its AttentionInterface, such as BERT, ViT, GPT-2 or Llama"
            )
    return model


def attends_by_interface(kind: type[nn.Module]) -> bool:
    """Whether the forward pass of such a module calls transformers' `AttentionInterface` itself."""
    return "ALL_ATTENTION_FUNCTIONS.get_interface(" in forward_source(kind)
