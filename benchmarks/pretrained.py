"""What an encoder loses by conversion, wins back and saves.

    python -m benchmarks.pretrained quality MODEL TEXTS
    python -m benchmarks.pretrained cost MODEL

MODEL is a folder with an encoder of transformers and its tokenizer, TEXTS a Parquet table with the column
text.

`quality`: sentence embeddings (the mean of the last hidden states of real tokens) of held-out texts beside
those of the model as it was: their cosine, and the rank correlation of the similarities of all pairs. First
straight after conversion, then after attention transfer, then after distillation, both on the other texts.

`cost`: time and memory of one text, of as many tokens as the model has positions for and of eight times as
many, for which positions are repeated: what stands in them changes neither.

Rows are printed as they come, in Markdown. Needs the extra `huggingface`.
"""

import argparse
import copy
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np
import polars as pl
import torch
from scipy.stats import spearmanr
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoModel, AutoTokenizer

import subquad.integrations.huggingface as hf
from subquad.measure.memory import peak_memory

ATTENTION = ("performer", "linear", "hedgehog", "nystromformer:landmarks=64", "local:width=64")
LONGER = 8  # times the positions that the model has
QUALITY = ("attention", "stage", "steps", "cosine", "rank correlation", "seconds a step")
COST = ("attention", "tokens", "ms", "beside softmax", "MB")


class Texts:
    """Batches of tokens, the same for every mechanism."""

    def __init__(self, tokenizer: Any, texts: Sequence[str], *, tokens: int, batch: int) -> None:
        self.tokenizer, self.texts, self.tokens, self.batch = tokenizer, texts, tokens, batch

    def once(self) -> Iterator[dict[str, Tensor]]:
        for start in range(0, len(self.texts), self.batch):
            yield self._tokens(self.texts[start : start + self.batch])

    def steps(self, count: int) -> Iterator[dict[str, Tensor]]:
        """So many batches, from the first text again where there are too few."""
        for start in range(0, count * self.batch, self.batch):
            yield self._tokens([self.texts[i % len(self.texts)] for i in range(start, start + self.batch)])

    def _tokens(self, texts: Sequence[str]) -> dict[str, Tensor]:
        return dict(
            self.tokenizer(texts, return_tensors="pt", padding=True, truncation=True, max_length=self.tokens)
        )


@torch.no_grad()
def embeddings(model: nn.Module, texts: Texts) -> Tensor:
    made: list[Tensor] = []
    for batch in texts.once():
        hidden, real = model(**batch)[0], batch["attention_mask"][..., None]
        made.append(F.normalize((hidden * real).sum(1) / real.sum(1), dim=-1))
    return torch.cat(made)


def likeness(mine: Tensor, original: Tensor) -> list[str]:
    """The mean cosine, and the rank correlation of the similarities of all pairs."""
    pairs = np.triu_indices(len(mine), 1)
    here, there = ((x @ x.T).numpy()[pairs] for x in (mine, original))
    ranks: Any = spearmanr(here, there)
    return [f"{(mine * original).sum(1).mean():.3f}", f"{ranks.statistic:.3f}"]


def quality(asked: argparse.Namespace, held_out: Texts, training: Texts) -> None:
    """What is lost, and won back by transfer and then by distillation."""
    model = AutoModel.from_pretrained(asked.model).eval()
    original = embeddings(model, held_out)
    print_row(*QUALITY)
    print_row(*["---"] * len(QUALITY))
    for attention in asked.attention:
        mine = hf.convert(copy.deepcopy(model), attention)
        print_row(f"`{attention}`", "converted", 0, *likeness(embeddings(mine, held_out), original), "")
        learns = any(".subquad." in name for name, _ in mine.named_parameters())
        for stage, steps in (("transfer", asked.transfer if learns else 0), ("distilled", asked.distil)):
            if steps:
                began = perf_counter()
                (hf.transfer if stage == "transfer" else hf.distil)(mine, training.steps(steps))
                seconds = f"{(perf_counter() - began) / steps:.2f}"
                scores = likeness(embeddings(mine, held_out), original)
                print_row(f"`{attention}`", stage, steps, *scores, seconds)


@torch.no_grad()
def cost(asked: argparse.Namespace) -> None:
    """Time and memory of one text, beside the model with the attention that it had."""
    model = AutoModel.from_pretrained(asked.model).eval()
    lengthen(model, LONGER)
    print_row(*COST)
    print_row(*["---"] * len(COST))
    most = model.config.max_position_embeddings
    for tokens in (most // LONGER, most):
        ids = torch.randint(1000, 2000, (1, tokens))
        mask = torch.ones_like(ids)
        softmax = 0.0
        for attention in ("", *asked.attention):
            mine = hf.convert(copy.deepcopy(model), attention) if attention else model
            samples = list(timed(mine, ids, mask))
            memory = peak_memory(lambda mine=mine, ids=ids, mask=mask: mine(ids, mask))
            softmax = softmax or median(samples)
            beside = f"{softmax / median(samples):.2f}×"
            row = f"`{attention}`" if attention else "softmax, as it was"
            print_row(row, f"{tokens:,}", f"{1e3 * median(samples):.0f}", beside, f"{memory.mb:.0f}")


def timed(model: nn.Module, ids: Tensor, mask: Tensor, *, repeats: int = 5) -> Iterator[float]:
    model(ids, mask)
    for _ in range(repeats):
        began = perf_counter()
        model(ids, mask)
        yield perf_counter() - began


def lengthen(model: Any, times: int) -> None:
    """Repeat the table of positions."""
    embedding = model.embeddings
    table = embedding.position_embeddings
    longer = nn.Embedding.from_pretrained(table.weight.detach().repeat(times, 1))
    embedding.position_embeddings = longer
    embedding.register_buffer("position_ids", torch.arange(len(longer.weight))[None], persistent=False)
    embedding.register_buffer(
        "token_type_ids", torch.zeros(1, len(longer.weight), dtype=torch.int64), persistent=False
    )
    model.config.max_position_embeddings = len(longer.weight)


def print_row(*cells: object) -> None:
    print("|", " | ".join(map(str, cells)), "|", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("quality", "cost"))
    parser.add_argument("model", type=Path)
    parser.add_argument("texts", type=Path, nargs="?")
    parser.add_argument("--attention", nargs="+", default=ATTENTION)
    parser.add_argument("--tokens", type=int, default=128, help="of a text")
    parser.add_argument("--held-out", type=int, default=200, help="texts")
    parser.add_argument("--batch", type=int, default=8, help="texts of a step")
    parser.add_argument("--transfer", type=int, default=100, help="steps")
    parser.add_argument("--distil", type=int, default=300, help="steps")
    asked = parser.parse_args()
    if asked.what == "cost":
        return cost(asked)
    if asked.texts is None:
        parser.error("quality is measured on texts: name a Parquet table of them")
    quality(asked, *read_texts(asked))


def read_texts(asked: argparse.Namespace) -> list[Texts]:
    """Those that are held out, and the others, in an order of chance that is always the same."""
    tokenizer = AutoTokenizer.from_pretrained(asked.model)
    table = pl.read_parquet(asked.texts, columns=["text"]).sample(fraction=1.0, shuffle=True, seed=0)
    texts = table["text"].to_list()
    return [
        Texts(tokenizer, part, tokens=asked.tokens, batch=asked.batch)
        for part in (texts[: asked.held_out], texts[asked.held_out :])
    ]


if __name__ == "__main__":
    main()
