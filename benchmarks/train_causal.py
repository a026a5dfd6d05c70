"""Train a small causal model of bytes from nothing, in Llama's shape, for the conversion of causal models.

    python -m benchmarks.train_causal BOOKS OUT

BOOKS is a Parquet table with the columns text and split, of which "train" is read. OUT becomes a folder with
the model and its tokenizer, as any other model of transformers, and texts.parquet, the books that it has not
read. 1,000 steps of 4,096 bytes are 20 minutes of one core that has bfloat16.

Needs the extra `huggingface`, and `tokenizers`.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path
from time import perf_counter

import numpy as np
import polars as pl
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from torch.nn.utils import clip_grad_norm_
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    get_cosine_schedule_with_warmup,
)

PAD = "<pad>"
LOGGED = 50  # steps between two printed losses


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """One token a byte, and one for padding."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({letter: place for place, letter in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token=PAD)


def byte_model(asked: argparse.Namespace, tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=asked.dim,
        intermediate_size=asked.dim * 8 // 3,
        num_hidden_layers=asked.depth,
        num_attention_heads=asked.heads,
        num_key_value_heads=asked.heads,
        max_position_embeddings=2**15,
        pad_token_id=tokenizer.get_vocab()[PAD],
        bos_token_id=None,
        eos_token_id=None,
        tie_word_embeddings=True,
    )
    return LlamaForCausalLM(config)


def windows(
    books: pl.DataFrame, tokenizer: PreTrainedTokenizerFast, asked: argparse.Namespace
) -> Iterator[Tensor]:
    """Batches of stretches of all books, at places of chance, without end."""
    place_of_byte = np.array(byte_places(tokenizer))
    tokens = place_of_byte[np.frombuffer("\n".join(books["text"]).encode(), np.uint8)]
    draw = np.random.default_rng(0)
    while True:
        starts = draw.integers(len(tokens) - asked.length, size=asked.batch)
        yield torch.from_numpy(np.stack([tokens[start : start + asked.length] for start in starts]))


def byte_places(tokenizer: PreTrainedTokenizerFast) -> list[int]:
    """The token of each byte, from 0."""
    vocabulary = tokenizer.get_vocab()
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]  # as GPT-2 writes bytes
    others = [byte for byte in range(256) if byte not in printable]
    letters = {byte: chr(byte) for byte in printable} | {byte: chr(256 + n) for n, byte in enumerate(others)}
    return [vocabulary[letters[byte]] for byte in range(256)]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("books", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--dim", type=int, default=256)
    parser.add_argument("--depth", type=int, default=4)
    parser.add_argument("--heads", type=int, default=8)
    parser.add_argument("--length", type=int, default=512, help="bytes of a row")
    parser.add_argument("--batch", type=int, default=8, help="rows of a step")
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--learning-rate", type=float, default=1.5e-3)
    asked = parser.parse_args()
    torch.manual_seed(0)
    books, tokenizer = pl.read_parquet(asked.books), byte_tokenizer()
    read = pl.col("split") == "train"
    model = byte_model(asked, tokenizer).train()
    optimiser = torch.optim.AdamW(
        model.parameters(), asked.learning_rate, betas=(0.9, 0.95), weight_decay=0.1
    )
    schedule = get_cosine_schedule_with_warmup(optimiser, asked.steps // 20, asked.steps)
    losses: list[float] = []
    began = perf_counter()
    for step, ids in zip(range(asked.steps), windows(books.filter(read), tokenizer, asked), strict=False):
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(input_ids=ids, labels=ids).loss
        optimiser.zero_grad()
        loss.backward()
        clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        losses.append(loss.item())
        if (step + 1) % LOGGED == 0:
            bits = sum(losses[-LOGGED:]) / LOGGED / np.log(2)
            seconds = (perf_counter() - began) / (step + 1)
            print(f"{step + 1:,} steps: {bits:.3f} bits per byte, {seconds:.2f} s a step", flush=True)
    model.eval().save_pretrained(asked.out)
    tokenizer.save_pretrained(asked.out)
    books.filter(~read).write_parquet(asked.out / "texts.parquet")


if __name__ == "__main__":
    main()
