"""How near a converted model is to what it was, on texts that nobody learnt from."""

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from scipy.stats import spearmanr
from torch import Tensor
from torch.nn import functional as F

from subquad.integrations.huggingface.distil import divergence, real_tokens

Batch = Mapping[str, Any]
Model = Callable[[Batch], Any]


class Predictions(NamedTuple):
    """Sums over the predictions for one batch."""

    count: float
    divergence: float  # nats
    agreeing: float
    nats: float  # of the tokens that came, from those before
    bytes: float  # of these


@torch.no_grad()
def quality(mine: Model, original: Model, batches: Iterable[Batch], counter: Any = None) -> dict[str, float]:
    """How near a model is to what it was. Of a model with logits:

    "bits_per_byte"     what the texts cost to tell, of a model that predicts the next token
    "divergence"        KL(original || model) of a prediction, in nats
    "agreement"         the share of predictions whose likeliest outcome is the original's

    and of another, by embeddings of texts (the mean of the last hidden states of real tokens):

    "cosine"            with the original's embedding, the mean
    "rank_correlation"  of the similarities of all pairs of texts, Spearman's

    batches: what a model is called with, by name.
    counter: the tokenizer, which counts bytes, of a model that predicts the next token; None of others.
    """
    predictions: list[Predictions] = []
    embeddings: list[tuple[Tensor, Tensor]] = []
    for batch in batches:
        out, aim = mine(batch), original(batch)
        if hasattr(out, "logits"):
            predictions.append(predictions_of(out, aim, batch, counter))
        else:
            embeddings.append((embedding(out[0], batch), embedding(aim[0], batch)))
    if embeddings:
        here, there = (torch.cat(side) for side in zip(*embeddings, strict=True))
        return {"cosine": float((here * there).sum(1).mean()), "rank_correlation": alike(here, there)}
    total = Predictions(*map(sum, zip(*predictions, strict=True)))
    bits = {"bits_per_byte": total.nats / math.log(2) / total.bytes} if counter is not None else {}
    return {**bits, "divergence": total.divergence / total.count, "agreement": total.agreeing / total.count}


def embedding(hidden: Float[Tensor, "b t d"], batch: Batch) -> Float[Tensor, "b d"]:
    real = real_tokens(hidden[..., 0], batch)[..., None]
    return F.normalize((hidden * real).sum(1) / real.sum(1), dim=-1)


def alike(here: Float[Tensor, "n d"], there: Float[Tensor, "n d"]) -> float:
    """The rank correlation of the similarities of all pairs."""
    pairs = np.triu_indices(len(here), 1)
    mine, theirs = ((each @ each.T).float().cpu().numpy()[pairs] for each in (here, there))
    ranks: Any = spearmanr(mine, theirs)
    return float(ranks.statistic)


def predictions_of(out: Any, aim: Any, batch: Batch, counter: Any) -> Predictions:
    """Of one batch, over its real tokens."""
    agreeing = out.logits.argmax(-1) == aim.logits.argmax(-1)
    real = real_tokens(agreeing, batch)
    count, nats, told = float(real.sum()), 0.0, 0
    if counter is not None:
        ids, follows = batch["input_ids"][:, 1:], real[:, 1:] & real[:, :-1]
        each = F.cross_entropy(out.logits[:, :-1].transpose(1, 2).float(), ids, reduction="none")
        nats = float(each[follows].sum())
        told = sum(len(text.encode()) for text in counter.batch_decode(ids, skip_special_tokens=True))
    return Predictions(
        count, float(divergence(out, aim, batch)) * count, float(agreeing[real].sum()), nats, told
    )
