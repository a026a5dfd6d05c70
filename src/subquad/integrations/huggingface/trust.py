"""What the folder of a pretrained model may ask of whoever loads it: nothing but numbers.

transformers can be told by a folder to unpickle weights, to run a modelling file or an attention kernel that
is named there, and to read weights from other folders. What tells it so is refused before it is called.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePath
from typing import Any

import transformers
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME
from transformers.utils.hub import cached_file
from transformers.utils.peft_utils import ADAPTER_CONFIG_NAME

from subquad.integrations.huggingface.interface import NAME

NO_CODE: Mapping[str, Any] = {"trust_remote_code": False}  # and no question on standard input either
NO_PICKLE: Mapping[str, Any] = {"use_safetensors": True}


def require_data(name: str, config: PreTrainedConfig, **located: Any) -> None:
    """Raise `ValueError` for a model whose files ask for more than to be read, or for other files.

    name: a folder, or a name on the Hugging Face hub.
    located: where on the hub, as `cached_file` takes it.
    """
    for each in nested_configs(config):
        require_attention(each._attn_implementation)
    if getattr(config, "transformers_weights", None) is not None:
        raise ValueError("its configuration names a file of weights (transformers_weights): rename that file")
    if file_of(name, ADAPTER_CONFIG_NAME, **located) is not None:
        raise ValueError(
            f"it has adapters ({ADAPTER_CONFIG_NAME}), which may lead to other files: merge them into the "
            "model, and save that"
        )
    weight_files(name, **located)


def require_regular_files(folder: Path) -> None:
    """Raise `ValueError` for a pipe or a device among the files, which may have no end."""
    for path in folder.glob("*"):
        if path.exists() and not (path.is_file() or path.is_dir()):
            raise ValueError(f"{path.name} is not a regular file")


def require_attention(implementation: object) -> None:
    """Raise `ValueError` for an attention that transformers would have to fetch."""
    known = {"eager", NAME, *ALL_ATTENTION_FUNCTIONS.keys()}
    if implementation is not None and not (isinstance(implementation, str) and implementation in known):
        raise ValueError(
            f"its configuration names the attention {implementation!r}, which is none of transformers' own: "
            "take it out of config.json"
        )


def weight_files(name: str, **located: Any) -> dict[str, str]:
    """The file of each weight, where there are several; empty where all are in one.

    Raises `ValueError` for a name that may lead out of the folder.
    """
    index = file_of(name, SAFE_WEIGHTS_INDEX_NAME, **located)
    if index is None or file_of(name, SAFE_WEIGHTS_NAME, **located) is not None:
        return {}
    with open(index, encoding="utf-8") as file:
        document = json.load(file)
    homes = document.get("weight_map") if isinstance(document, dict) else None
    if not isinstance(homes, dict):
        raise ValueError(f"{SAFE_WEIGHTS_INDEX_NAME} is damaged: it has no weight_map")
    for home in homes.values():
        if not isinstance(home, str) or PurePath(home).name != home or not home.endswith(".safetensors"):
            raise ValueError(f"{SAFE_WEIGHTS_INDEX_NAME} names {home!r}, and no safetensors file beside it")
    return homes


def model_class_named(name: str) -> type[PreTrainedModel]:
    """The class of transformers; `ValueError` where there is no such model."""
    kind = getattr(transformers, name, None)
    if not (isinstance(kind, type) and issubclass(kind, PreTrainedModel)):
        raise ValueError(f"transformers has no model {name}: say the class of the model, model_class=…")
    return kind


def nested_configs(config: PreTrainedConfig) -> Iterator[PreTrainedConfig]:
    """A configuration and those within it, such as of a text and an image encoder."""
    yield config
    for each in config.sub_configs:
        if isinstance(within := getattr(config, each, None), PreTrainedConfig):
            yield from nested_configs(within)


def file_of(name: str, file: str, **located: Any) -> str | None:
    """Where one of a model's files is, or None."""
    return cached_file(
        name,
        file,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_gated_repo=False,
        **located,
    )
