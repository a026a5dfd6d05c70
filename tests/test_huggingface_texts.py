"""Texts in batches, and models that read longer ones."""

from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch
from pretrained import SAMPLES, run
from torch.testing import assert_close
from transformers import DistilBertConfig, DistilBertModel

import subquad.integrations.huggingface as hf
from subquad.config import TextsConfig
from subquad.integrations.huggingface.texts import LONGEST_TOKEN, Texts


class Characters:
    """A tokenizer of one token a character."""

    pad_token = "-"

    def __call__(self, texts: list[str], *, max_length: int, **_: Any) -> dict[str, torch.Tensor]:
        rows = [[*map(ord, text[:max_length])] for text in texts]
        longest = max(map(len, rows))
        padded = [[*row, *[0] * (longest - len(row))] for row in rows]
        return {"input_ids": torch.tensor(padded)}


TEXTS = ["alpha", "beta", "gamma", "delta"]


def rows_of(batch: dict[str, torch.Tensor]) -> list[str]:
    return ["".join(chr(token) for token in row if token) for row in batch["input_ids"].tolist()]


def test_every_text_has_its_turn_before_any_comes_again():
    texts = Texts(Characters(), TEXTS, tokens=8, batch=2, seed=3)
    turns = [rows_of(texts[step]) for step in range(8)]
    for first in range(0, 8, 2):
        assert sorted(turns[first] + turns[first + 1]) == sorted(TEXTS)
    assert len({tuple(turns[first] + turns[first + 1]) for first in range(0, 8, 2)}) > 1


def test_a_batch_is_the_same_whenever_it_is_asked_for():
    long = ["".join(chr(33 + (7 * i) % 90) for i in range(5000)), *TEXTS]
    texts, others = (Texts(Characters(), long, tokens=8, batch=2, seed=seed) for seed in (0, 1))
    later = texts[9]
    again = Texts(Characters(), long, tokens=8, batch=2, seed=0)
    assert rows_of(again[9]) == rows_of(later)
    assert [rows_of(texts[step]) for step in range(9)] != [rows_of(others[step]) for step in range(9)]


def test_long_texts_are_read_at_places_of_chance():
    long = "".join(chr(200 + i) for i in range(3000))
    texts = Texts(Characters(), [long], tokens=4, batch=1)
    starts = {long.index(rows_of(texts[step])[0]) for step in range(12)}
    assert len(starts) > 8
    assert max(starts) <= len(long) - LONGEST_TOKEN * 4


def test_held_out_texts_are_not_learnt_from(tmp_path: Path):
    pl.DataFrame({"text": [f"text {i}" for i in range(20)] + [None, " "]}).write_parquet(
        tmp_path / "a.parquet"
    )
    learnt, held_out = hf.read_texts(
        tmp_path / "a.parquet", Characters(), TextsConfig(tokens=10, batch=3, held_out=6)
    )
    measured = [row for batch in held_out for row in rows_of(batch)]
    assert len(measured) == 6
    assert len(set(measured)) == 4  # a fifth of the texts
    assert len(set(learnt.texts)) == 16
    assert not set(measured) & set(learnt.texts)


@pytest.mark.parametrize("ending", ["parquet", "csv", "jsonl"])
def test_tables_of_three_kinds_are_read(ending: str, tmp_path: Path):
    table, path = pl.DataFrame({"words": TEXTS}), tmp_path / f"a.{ending}"
    {"parquet": table.write_parquet, "csv": table.write_csv, "jsonl": table.write_ndjson}[ending](path)
    learnt, held_out = hf.read_texts(path, Characters(), TextsConfig(column="words", held_out=1))
    assert sorted([*learnt.texts, *rows_of(held_out[0])]) == sorted(TEXTS)


def test_what_is_no_table_of_texts_is_refused(tmp_path: Path):
    pl.DataFrame({"text": ["one"], "label": [1]}).write_parquet(tmp_path / "one.parquet")
    (tmp_path / "bad.parquet").write_text("no table")
    (tmp_path / "a.txt").write_text("words")
    for name, column, message in (
        ("one.parquet", "text", "fewer than two texts"),
        ("one.parquet", "label", "no column of texts 'label': columns of texts are text"),
        ("bad.parquet", "text", "cannot be read as a table"),
        ("none.csv", "text", "cannot be read as a table"),
        ("a.txt", "text", "is no table of texts"),
    ):
        with pytest.raises(ValueError, match=message):
            hf.read_texts(tmp_path / name, Characters(), TextsConfig(column=column))


@pytest.mark.parametrize("kind", ["bert", "roberta", "gpt2", "bart", "llama", "modernbert"])
def test_a_model_reads_longer_texts_and_short_ones_as_before(kind: str):
    model, inputs = SAMPLES[kind].model(), SAMPLES[kind].inputs()
    before = run(model, inputs)
    most = model.config.max_position_embeddings
    hf.extend_positions(model, most + 40)
    assert_close(run(model, inputs), before)
    ids = torch.randint(3, 99, (1, most + 40))
    decoder = {"decoder_input_ids": ids[:, :5]} if kind == "bart" else {}
    assert run(model, {"input_ids": ids, **decoder}).isfinite().all()


def test_positions_come_again_from_the_first():
    model = SAMPLES["bert"].model()
    table = model.embeddings.position_embeddings.weight.clone()
    hf.extend_positions(model, 150)
    longer = model.embeddings.position_embeddings.weight
    assert_close(longer, torch.cat([table, table, table[:22]]))
    roberta = SAMPLES["roberta"].model()
    front = roberta.embeddings.padding_idx + 1
    table = roberta.embeddings.position_embeddings.weight.clone()
    hf.extend_positions(roberta, 100)
    assert_close(
        roberta.embeddings.position_embeddings.weight[front : front + 100][len(table) - front :][:5],
        table[front:][:5],
    )


def test_positions_that_cannot_be_extended_are_refused():
    with pytest.raises(ValueError, match="has 64 positions, and cannot be extended to 10"):
        hf.extend_positions(SAMPLES["bert"].model(), 10)
    for kind in ("t5", "vit"):
        with pytest.raises(ValueError, match="neither a learnt table of positions nor rotary"):
            hf.extend_positions(SAMPLES[kind].model(), 500)
    sinusoidal = DistilBertModel(
        DistilBertConfig(
            dim=32, n_layers=1, n_heads=4, hidden_dim=48, vocab_size=99, sinusoidal_pos_embds=True
        )
    )
    assert hf.extend_positions(sinusoidal, 600).config.max_position_embeddings == 600
