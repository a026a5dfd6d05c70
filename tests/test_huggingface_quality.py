"""What a converted model is worth, held against plain formulas."""

import math
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from pretrained import SAMPLES
from scipy.stats import spearmanr
from torch.nn import functional as F

import subquad.integrations.huggingface as hf
from subquad.integrations.huggingface.quality import quality

LETTERS = {number: chr(97 + number % 26) for number in range(1, 99)}


class TwoBytes:
    """A tokenizer whose every token but padding is two bytes of text."""

    def batch_decode(self, ids: torch.Tensor, *, skip_special_tokens: bool) -> list[str]:
        assert skip_special_tokens
        return ["".join(LETTERS[token] * 2 for token in row if token) for row in ids.tolist()]


def calls(kind: str) -> tuple[Any, Any]:
    mine, original = hf.convert(SAMPLES[kind].model(), "linear"), SAMPLES[kind].model()
    return (lambda batch: mine(**batch)), (lambda batch: original(**batch))


def padded(ids: torch.Tensor) -> Mapping[str, torch.Tensor]:
    valid = torch.ones(len(ids), ids.shape[1] + 3, dtype=torch.int64)
    valid[:, -3:] = 0
    return {"input_ids": F.pad(ids, (0, 3)), "attention_mask": valid}


def test_predictions_are_judged_by_their_likelihood_and_by_the_originals():
    mine, original = calls("llama")
    ids = torch.randint(3, 99, (2, 9))
    with torch.no_grad():
        out, aim = mine({"input_ids": ids}).logits, original({"input_ids": ids}).logits
    found = quality(mine, original, [padded(ids[:1]), {"input_ids": ids[1:]}], TwoBytes())
    nats = F.cross_entropy(out[:, :-1].flatten(0, 1), ids[:, 1:].flatten(), reduction="sum")
    assert found["bits_per_byte"] == pytest.approx(float(nats) / math.log(2) / (2 * 2 * 8), rel=1e-4)
    p, q = aim.softmax(-1), out.softmax(-1)
    divergence = (p * (p / q).log()).sum(-1).mean()
    assert found["divergence"] == pytest.approx(float(divergence), rel=1e-4)
    assert found["agreement"] == pytest.approx(float((out.argmax(-1) == aim.argmax(-1)).float().mean()))
    assert "bits_per_byte" not in quality(mine, original, [{"input_ids": ids}])


def test_texts_are_judged_by_their_embeddings():
    mine, original = calls("bert")
    ids = torch.randint(3, 99, (6, 9))
    with torch.no_grad():
        here, there = (F.normalize(each({"input_ids": ids})[0].mean(1), dim=-1) for each in (mine, original))
    found = quality(mine, original, [padded(ids[:4]), {"input_ids": ids[4:]}])
    pairs = [(i, j) for i in range(6) for j in range(i + 1, 6)]
    similarities = [[float(side[i] @ side[j]) for i, j in pairs] for side in (here, there)]
    ranks: Any = spearmanr(similarities[0], similarities[1])
    assert found == pytest.approx(
        {"cosine": float((here * there).sum(1).mean()), "rank_correlation": ranks.statistic}, rel=1e-4
    )
