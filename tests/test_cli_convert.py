"""`subquad convert`: a folder of a model to a folder of the converted one, its document and its page."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch
from pretrained import SAMPLES, run
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from torch.testing import assert_close
from transformers import PreTrainedTokenizerFast
from transformers.utils import logging

import subquad.integrations.huggingface as hf
from subquad.integrations.huggingface import conversion, cost
from subquad.report.conversion import answer, conversion_page

Command = Callable[..., tuple[int, str, str]]
QUICK = ["--transfer", "2", "--distil", "3", "--tokens", "12", "--batch", "2", "--held-out", "4"]
WORDS = [f"w{i}" for i in range(90)]


def write_model(kind: str, folder: Path) -> None:
    SAMPLES[kind].model().save_pretrained(folder)
    vocabulary = {word: i for i, word in enumerate(["[PAD]", "[UNK]", *WORDS])}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="[UNK]", pad_token="[PAD]", model_max_length=64
    ).save_pretrained(folder)


@pytest.fixture
def call(command_line: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Command:
    monkeypatch.setattr(cost, "SECONDS", 0.0)
    logging.disable_progress_bar()
    for kind in ("bert", "llama"):
        write_model(kind, tmp_path / kind)
    texts = [" ".join(WORDS[(i * j) % 90] for j in range(5, 25)) for i in range(1, 21)]
    pl.DataFrame({"text": texts}).write_parquet(tmp_path / "texts.parquet")
    return partial(command_line, "convert")


def plain(folder: Path) -> list[str]:
    """The words of a conversion without recovery."""
    return [str(folder / "bert"), "--attention", "linear", "--out", str(folder / "out"), "--lengths", "8"]


def recovering(kind: str, attention: str, folder: Path) -> list[str]:
    return [str(folder / kind), "--attention", attention, "--recover", str(folder / "texts.parquet"), *QUICK]


def test_a_model_is_converted_and_recovered_and_read_again(call: Command, tmp_path: Path):
    out = tmp_path / "out"
    command = [
        *recovering("bert", "hedgehog", tmp_path),
        "--positions",
        "80",
        "--lengths",
        "16,80",
        "--out",
        str(out),
    ]
    status, shown, told = call(*command)
    assert status == 0, told
    assert "after attention transfer" in shown
    assert f"model: {out}" in shown
    document = json.loads((out / "conversion.json").read_text())
    assert [stage["name"] for stage in document["stages"]] == [
        "original",
        "converted",
        "transfer",
        "distilled",
    ]
    assert [each["tokens"] for each in document["reading"]] == [16, 80]
    model = hf.from_pretrained(str(out))
    assert model.config.max_position_embeddings == 80
    assert run(model, {"input_ids": torch.randint(3, 90, (1, 80))}).isfinite().all()
    assert not (out / conversion.CHECKPOINT).exists()


def test_tables_fit_into_80_columns(call: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("COLUMNS", "80")
    status, shown, _ = call(
        *recovering("llama", "linear", tmp_path), "--lengths", "32", "--out", str(tmp_path / "out")
    )
    assert status == 0
    assert "…" not in shown
    lines = [line.split() for line in shown.splitlines()]
    assert [line[:2] for line in lines if line[:1] in (["softmax"], ["linear"])] == [
        ["softmax", "32"],
        ["linear", "32"],
    ] * 2


def test_a_causal_model_is_judged_by_bits_per_byte_and_timed_as_it_generates(call: Command, tmp_path: Path):
    status, shown, _ = call(
        *recovering("llama", "linear", tmp_path), "--lengths", "32", "--out", str(tmp_path / "out"), "--json"
    )
    document = json.loads(shown)
    assert status == 0
    assert set(document["stages"][0]["quality"]) == {"bits_per_byte", "divergence", "agreement"}
    assert document["decoding"][0]["converted"]["cache_mb"] > 0
    page = Path(document["report"]).read_text()
    assert "bits per byte" in page
    assert "Tokens generated a second" in page


def test_what_is_done_is_not_done_again(call: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    command = plain(tmp_path)
    assert call(*command)[0] == 0

    def never(*_: Any) -> None:
        raise AssertionError

    monkeypatch.setattr(conversion, "make", never)
    assert call(*command[:-1], "8,16")[0] == 0
    assert [
        each["tokens"] for each in json.loads((tmp_path / "out" / "conversion.json").read_text())["reading"]
    ] == [8, 16]
    monkeypatch.setattr(conversion, "measure", never)
    assert call(*command)[0] == 0
    status, _, told = call(*command, "--only", "encoder.layer.0.*")
    assert (status, "holds another conversion" in told) == (2, True)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ({"stages": 3}, "stages: "),
        ({"reading": [{"tokens": 8, "original": {"ms": 1.0}, "converted": {}}]}, "reading.0.original.mb: is"),
        ({"layers": {"a": 1}}, "layers.a: "),
    ],
)
def test_a_damaged_document_is_one_line(call: Command, tmp_path: Path, damage: dict[str, Any], message: str):
    command = plain(tmp_path)
    assert call(*command)[0] == 0
    path = tmp_path / "out" / "conversion.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **damage}))
    status, _, told = call(*command)
    assert (status, "is damaged" in told, message in told) == (2, True, True), told
    path.write_text("[")
    assert call(*command)[0] == 2


def test_an_interrupted_conversion_goes_on(call: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    command = [*recovering("bert", "hedgehog", tmp_path), "--lengths", "16", "--out", str(tmp_path / "out")]
    with monkeypatch.context() as patched:
        patched.setattr(conversion.PreTrainedModel, "save_pretrained", interrupt)
        status, _, told = call(*command)
    assert (status, "the same command goes on from here" in told) == (130, True)
    status, _, told = call(*command)
    assert status == 0, told
    assert call(*command[:-1], str(tmp_path / "other"))[0] == 0
    one, other = (hf.from_pretrained(str(tmp_path / name)) for name in ("out", "other"))
    inputs = SAMPLES["bert"].inputs()
    assert_close(run(one, inputs), run(other, inputs), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("{0}/none --attention linear --out {0}/out", "has no model of transformers"),
        ("{0}/bert --attention nothing --out {0}/out", "nothing"),
        ("{0}/bert --attention linear --out {0}/llama", "holds something else already"),
        ("{0}/bert --attention linear --out {0}/texts.parquet", "holds something else already"),
        ("{0}/bert --attention linear --rank 3 --out {0}/out", "name a table, --recover"),
        (
            "{0}/bert --attention linear --recover {0}/texts.parquet --rank 3 --distil 0 --out {0}/out",
            "adapters of rank 3 learn in the distillation",
        ),
        (
            "{0}/bert --attention linear --recover {0}/none.csv --tokens 12 --out {0}/out",
            "cannot be read as a table",
        ),
        (
            "{0}/bert --attention linear --positions 3 --out {0}/out",
            "has 64 positions, and cannot be extended",
        ),
        (
            "{0}/bert --attention linear --lengths 65 --out {0}/out",
            "has 64 positions, and 65 tokens are asked",
        ),
        (
            "{0}/bert --attention linear --recover {0}/texts.parquet --tokens 65 --out {0}/out",
            "has 64 positions, and 65 tokens are asked",
        ),
        ("{0}/bert --attention linear --only x --out {0}/out", "fits no attention layer"),
    ],
)
def test_what_cannot_be_converted_is_one_line_and_leaves_nothing(
    call: Command, tmp_path: Path, words: str, message: str
):
    before = sorted(tmp_path.rglob("*"))
    status, _, told = call(*words.format(tmp_path).split())
    assert message in " ".join(told.split())
    assert status == 2
    assert sorted(tmp_path.rglob("*")) == before


def test_the_page_says_what_was_lost_won_back_and_saved():
    quality = {"bits_per_byte": 2.0, "divergence": 0.0, "agreement": 1.0}
    side = {"ms": 100.0, "mb": 50.0}
    document = {
        "asked": {
            "model": "/models/<b>",
            "attention": "linear",
            "only": "*",
            "positions": None,
            "recovery": {"table": "t.csv", "texts": {"tokens": 3}, "config": {"transfer": 9}},
        },
        "architecture": "LlamaForCausalLM",
        "layers": {"layers.0": "linear", "layers.1": None},
        "stages": [
            {"name": "original", "steps": 0, "seconds": 0.0, "quality": quality, "loss": []},
            {
                "name": "converted",
                "steps": 0,
                "seconds": 0.0,
                "quality": {**quality, "bits_per_byte": 4.0},
                "loss": [],
            },
            {
                "name": "distilled",
                "steps": 2,
                "seconds": 3.0,
                "quality": {**quality, "bits_per_byte": 2.25},
                "loss": [2.0, 1.0],
            },
        ],
        "reading": [{"tokens": 64, "original": side, "converted": {"ms": 25.0, "mb": 5.0}}],
        "decoding": [
            {
                "tokens": 64,
                "original": {"tokens_per_second": 10.0, "cache_mb": 8.0},
                "converted": {"tokens_per_second": 40.0, "cache_mb": 0.5},
            }
        ],
        "machine": {"cpu": "one", "cores": 2},
        "versions": {"subquad": "1"},
    }
    sentence, reasons = answer(document)
    assert sentence == (
        "Conversion took its bits per byte from 2.000 to 4.000; training on brought it to 2.250. "
        "A text of 64 tokens is 4.0× as fast, in 0.10× the memory."
    )
    assert reasons == [
        "After 64 tokens it generates 40.0 a second from a cache of 0.500 MB, and as it was 10.0 a second "
        "from a cache of 8.00 MB.",
        "There was no transfer, for the mechanisms have no weights of their own to learn.",
    ]
    page = conversion_page(document)
    assert "<b>" not in page
    assert "subquad convert" in page
    assert "1 of 2" in page
    side["mb"] = 0.0  # as of a small model
    for each in document["reading"]:
        each["converted"]["mb"] = 0.0
    assert answer(document)[0].endswith("A text of 64 tokens is 4.0× as fast.")
    assert "Memory of a text" not in conversion_page(document)
