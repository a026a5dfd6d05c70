"""The folder of a pretrained model is data, whatever it asks for."""

import json
import random
import shutil
from collections.abc import Callable
from logging import CRITICAL
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from corruption import corrupt, restore
from pretrained import SAMPLES
from transformers import PreTrainedConfig
from transformers.utils import logging

import subquad.integrations.huggingface as hf
from subquad.integrations.huggingface.saved import load_folder
from subquad.integrations.huggingface.trust import nested_configs

Change = Callable[[Path], None]
INDEX, WEIGHTS = "model.safetensors.index.json", "model.safetensors"


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A model that was converted and one that was not, each in several files of weights."""
    made = {name: tmp_path_factory.mktemp("models") / name for name in ("converted", "plain")}
    model = SAMPLES["bert"].model()
    model.save_pretrained(made["plain"], max_shard_size="20KB")
    hf.convert(model, "performer", features=8).save_pretrained(made["converted"], max_shard_size="20KB")
    return made


def edit(name: str, **fields: Any) -> Change:
    def change(folder: Path) -> None:
        document = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps({**document, **fields}))

    return change


def lead_out(home: str) -> Change:
    """Weights in a file elsewhere, which exists."""

    def change(folder: Path) -> None:
        document = json.loads((folder / INDEX).read_text())
        weight, before = next(iter(document["weight_map"].items()))
        shutil.copy(folder / before, folder.parent / "elsewhere.safetensors")
        document["weight_map"][weight] = home.format(folder=folder)
        (folder / INDEX).write_text(json.dumps(document))

    return change


def pickled(folder: Path) -> None:
    for path in folder.glob("*.safetensors*"):
        path.unlink()
    torch.save({"a": torch.ones(1)}, folder / "pytorch_model.bin")


def with_code(folder: Path) -> None:
    """A modelling file that leaves a mark where it is run."""
    mark = str(folder.parent / "ran")
    (folder / "evil.py").write_text(f"open({mark!r}, 'w').close()\nclass Config: pass\n")
    edit("config.json", model_type="evil", auto_map={"AutoConfig": "evil.Config"})(folder)


def with_adapters(folder: Path) -> None:
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "/elsewhere"}))


HARMFUL: dict[str, tuple[Change, str]] = {
    "a folder above": (lead_out("../elsewhere.safetensors"), "names '../elsewhere.safetensors'"),
    "an absolute path": (lead_out("{folder}/../elsewhere.safetensors"), "and no safetensors file beside it"),
    "no safetensors": (lead_out("pytorch_model.bin"), "names 'pytorch_model.bin'"),
    "no index": (edit(INDEX, weight_map=[]), "it has no weight_map"),
    "pickled": (pickled, "safetensors"),
    "code": (with_code, "contains custom code|does not recognize this architecture|trust_remote_code"),
    "a kernel": (edit("config.json", attn_implementation="someone/kernel"), "the attention 'someone/kernel'"),
    "adapters": (with_adapters, "it has adapters"),
    "another file": (
        edit("config.json", transformers_weights="adapter_model.bin"),
        "names a file of weights",
    ),
    "no model": (edit("config.json", architectures=["pipeline"]), "transformers has no model pipeline"),
}


@pytest.mark.parametrize("which", ["converted", "plain"])
@pytest.mark.parametrize("what", HARMFUL)
def test_a_folder_that_asks_for_more_than_to_be_read_is_refused_in_one_line(
    folders: dict[str, Path], which: str, what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("builtins.input", lambda question: "yes")  # who is asked agrees, and is not asked
    folder = shutil.copytree(folders[which], tmp_path / "model")
    change, message = HARMFUL[what]
    change(folder)
    with pytest.raises(ValueError, match=message) as refusal:
        load_folder(folder)
    assert "\n" not in str(refusal.value)
    assert not (tmp_path / "ran").exists()


class Holder(PreTrainedConfig):
    """A configuration that holds another one."""

    sub_configs: ClassVar[dict[str, Any]] = {"held": PreTrainedConfig}


def test_an_attention_is_looked_at_however_deep_it_is_named():
    outer, inner, innermost = Holder(), Holder(), PreTrainedConfig()
    outer.held, inner.held = inner, innermost
    assert [*map(id, nested_configs(outer))] == [*map(id, (outer, inner, innermost))]


@pytest.mark.parametrize("before", ["someone/kernel", {"": "someone/kernel"}, ["sdpa"]])
def test_what_a_converted_model_attended_by_is_one_of_transformers_own(
    folders: dict[str, Path], before: Any, tmp_path: Path
):
    folder = shutil.copytree(folders["converted"], tmp_path / "model")
    noted = json.loads((folder / "config.json").read_text())["subquad"]
    edit("config.json", subquad={**noted, "before": before})(folder)
    with pytest.raises(ValueError, match="is none of transformers' own"):
        hf.from_pretrained(str(folder))


def refusal_of(folder: Path) -> str | None:
    try:
        load_folder(folder)
    except ValueError as error:
        return str(error)
    return None


@pytest.mark.parametrize("which", ["converted", "plain"])
def test_a_damaged_pretrained_model_is_refused_in_one_line_or_loaded(
    folders: dict[str, Path], which: str, tmp_path: Path
):
    logging.set_verbosity(CRITICAL)  # it tells of weights that are missing
    folder = shutil.copytree(folders[which], tmp_path / "model")
    paths = [folder / "config.json", folder / INDEX, *sorted(folder.glob("*.safetensors"))[:1]]
    before = {path: path.read_bytes() for path in paths}
    chance = random.Random(0)
    for _ in range(40):
        path = chance.choice(paths)
        how = corrupt(path, chance)
        said = refusal_of(folder)
        assert said is None or said.startswith(f"{str(folder)!r} has no model of transformers: "), (path, how)
        assert said is None or "\n" not in said, (path, how)
        restore(path, before[path])
