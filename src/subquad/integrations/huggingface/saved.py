"""Converted models from where `save_pretrained` has put them."""

from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import Tensor
from transformers import AutoConfig, AutoTokenizer, PreTrainedConfig, PreTrainedModel
from transformers.utils import SAFE_WEIGHTS_NAME, logging
from transformers.utils.hub import cached_file

from subquad.integrations.converted import ConvertedAttention
from subquad.integrations.huggingface.convert import attach, note
from subquad.integrations.huggingface.interface import NAME
from subquad.integrations.huggingface.layers import attention_layers, require_pretrained
from subquad.integrations.huggingface.trust import (
    NO_CODE,
    NO_PICKLE,
    model_class_named,
    require_attention,
    require_data,
    require_regular_files,
    weight_files,
)

WITHIN = f".{NAME}."  # a layer's mechanism in the names of weights


def from_pretrained(
    name: str, *, model_class: type[PreTrainedModel] | None = None, **options: Any
) -> PreTrainedModel:
    """A converted model with its mechanisms, as `model.save_pretrained` has written it.

    Raises `ValueError` where what it names is no converted model, or lacks weights of its mechanisms, and
    where its files ask for more than to be read (`trust`): nothing is unpickled, and no code of it is run.

    name: a folder, or a name on the Hugging Face hub.
    model_class: of transformers. None: that of the model that was saved.
    options: those of transformers' `from_pretrained`.
    """
    located = {key: options[key] for key in ("revision", "cache_dir", "token", "subfolder") if key in options}
    config = AutoConfig.from_pretrained(name, **located, **NO_CODE)
    noted = getattr(config, NAME, None)
    if not isinstance(noted, Mapping) or not {"layers", "before"} <= noted.keys():
        raise ValueError(f"{name} is not a converted model: load it with transformers, and call convert")
    require_data(name, config, **located)
    require_attention(before := noted["before"])
    kind = model_class or saved_class(config)
    model = quiet(kind).from_pretrained(
        name, **{"attn_implementation": before, **NO_CODE, **NO_PICKLE, **options}
    )
    model.__class__ = kind
    layers = attention_layers(require_pretrained(model))
    if unknown := noted["layers"].keys() - layers.keys():
        raise ValueError(f"{name} has mechanisms for layers that {kind.__name__} lacks: {', '.join(unknown)}")
    built = {layer: ConvertedAttention(**arguments) for layer, arguments in noted["layers"].items()}
    attach(layers, built)
    load_mechanisms(model, built, saved_mechanisms(name, **located), source=name)
    note(model, layers)
    return model


def load_folder(folder: Path) -> tuple[PreTrainedModel, Any]:
    """The model in a folder, converted or not, with all that it was saved with, and its tokenizer or None.

    Raises `ValueError` for a folder without a model, a damaged one, and one that asks for more than that.
    """
    logging.disable_progress_bar()  # the command line has its own
    try:
        require_regular_files(folder)
        config = AutoConfig.from_pretrained(folder, **NO_CODE)
        if hasattr(config, NAME):
            model = from_pretrained(str(folder))
        else:
            require_data(str(folder), config)
            model = saved_class(config).from_pretrained(str(folder), **NO_CODE, **NO_PICKLE)
    except Exception as error:  # transformers raises what it stumbles over where files are damaged
        reason = (str(error).strip() or type(error).__name__).partition("\n")[0]
        raise ValueError(f"{str(folder)!r} has no model of transformers: {reason}") from error
    try:
        return model, AutoTokenizer.from_pretrained(folder, **NO_CODE)
    except Exception:  # as above; whoever needs the tokenizer says so
        return model, None


def saved_class(config: PreTrainedConfig) -> type[PreTrainedModel]:
    """That of the model which was saved with this configuration."""
    return model_class_named((config.architectures or ["?"])[0])


def quiet(kind: type[PreTrainedModel]) -> type[PreTrainedModel]:
    """The same class, for which the weights of mechanisms, which come later, are no surprise."""
    ignored = [*(kind._keys_to_ignore_on_load_unexpected or ()), WITHIN.replace(".", r"\.")]
    return type(
        kind.__name__, (kind,), {"__module__": kind.__module__, "_keys_to_ignore_on_load_unexpected": ignored}
    )


def saved_mechanisms(name: str, **located: Any) -> dict[str, Tensor]:
    """The weights of mechanisms among all that were saved, by name."""
    homes = weight_files(name, **located)
    files = (
        sorted({home for weight, home in homes.items() if WITHIN in weight}) if homes else [SAFE_WEIGHTS_NAME]
    )
    found: dict[str, Tensor] = {}
    with ExitStack() as stack:
        for file in files:
            tensors = stack.enter_context(safe_open(cached_file(name, file, **located), framework="pt"))
            names = [weight for weight in tensors.keys() if WITHIN in weight]  # noqa: SIM118, it is no dict
            found |= {weight: tensors.get_tensor(weight) for weight in names}
    return found


def load_mechanisms(
    model: PreTrainedModel,
    built: Mapping[str, ConvertedAttention],
    tensors: Mapping[str, Tensor],
    *,
    source: str,
) -> None:
    """Fill the mechanisms. Names of weights begin with what stands around the base model, if any."""
    prefix = f"{model.base_model_prefix}."
    within = {weight.removeprefix(prefix): tensor for weight, tensor in tensors.items()}
    for name, ours in built.items():
        own = {
            weight.removeprefix(f"{name}{WITHIN}"): tensor
            for weight, tensor in within.items()
            if weight.startswith(f"{name}{WITHIN}")
        }
        problems = ours.load_state_dict(own, strict=False)
        if problems.missing_keys or problems.unexpected_keys:
            raise ValueError(
                f"{source} does not hold the mechanism of layer {name}: "
                f"{', '.join([*problems.missing_keys, *problems.unexpected_keys])}"
            )
