"""Attention transfer: the mechanisms of a converted model learn to give what softmax attention gave.

The model reads texts with the attention that it was trained with. In each layer the mechanism gets the same
queries, keys and values, and learns by its error against softmax attention there. Nothing else learns, and no
layer waits for another: one forward pass of the model teaches all of them, in the memory of one layer.

    outputs    |out - softmax's|^2 / |softmax's|^2, over all real queries
    weights    - sum_j a_ij log w_ij, the mean over queries: a softmax's attention weights, w the mechanism's

Zhang, Bhatia, Kumbong, Re: The Hedgehog & the Porcupine: Expressive Linear Attentions with Softmax Mimicry.
ICLR 2024, arXiv:2402.04347, teaches by weights. Zhang et al.: LoLCATs: On Low-Rank Linearizing of Large
Language Models, arXiv:2410.10254, by outputs (its abstract; the authors' trainer can do both), as a mean of
squares that is not relative: layers whose values are large weigh more there.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from subquad.integrations.huggingface.interface import Call, attending_as_before
from subquad.integrations.huggingface.layers import converted_layers, require_pretrained
from subquad.measure.fidelity import mechanism_weights, softmax_weights

SMALLEST_WEIGHT = 1e-8  # beneath which a weight costs no more


LEARNING_RATE = 1e-2


@dataclass(frozen=True)
class Lesson:
    """`loss`: of each layer by name, in each step, the first before anything was learnt."""

    loss: Mapping[str, list[float]]


def transfer(
    model: nn.Module,
    batches: Iterable[Mapping[str, Any]],
    *,
    teacher: str = "outputs",
    learning_rate: float = LEARNING_RATE,
) -> Lesson:
    """Teach the mechanisms of a converted model what softmax attention gave, one step of Adam a batch.

    Raises `ValueError` where no mechanism has weights to learn, such as those of random features, and for
    another teacher.

    model: that `convert` has changed. Its own weights stay as they are.
    batches: what the model is called with, by name: "input_ids", "attention_mask", …
    teacher: what is compared, "outputs" or "weights" of attention. The latter are formed, in memory of the
        square of the length, and mean something for mechanisms that are linear in values.
    learning_rate: of Adam.
    """
    learner = Transfer(model, teacher=teacher, learning_rate=learning_rate)
    losses = [learner.step(batch) for batch in batches]
    return Lesson({name: [loss[name] for loss in losses] for name in learner.learning})


class Transfer:
    """The same step by step, for whoever keeps count; its parameters are those of `transfer`."""

    def __init__(
        self, model: nn.Module, *, teacher: str = "outputs", learning_rate: float = LEARNING_RATE
    ) -> None:
        if teacher not in ERRORS:
            raise ValueError(f"teacher is one of {', '.join(ERRORS)}, not {teacher!r}")
        self.model, self.error = require_pretrained(model), ERRORS[teacher]
        self.names = {ours: name for name, ours in converted_layers(self.model).items()}
        self.learning = [name for layer, name in self.names.items() if learnable(layer)]
        if not self.learning:
            named = ", ".join(sorted({repr(layer.attention) for layer in self.names})) or "none"
            raise ValueError(
                f"no mechanism of this model has weights to learn ({named}): take one that has, such as "
                "'hedgehog', or fine-tune the whole model"
            )
        self.optimiser = torch.optim.Adam(
            [x for layer in self.names for x in learnable(layer)], learning_rate
        )

    def step(self, batch: Mapping[str, Any]) -> dict[str, float]:
        """Learn from one batch; the error of each layer that learns, before it did."""
        losses: dict[str, float] = {}

        def learn(call: Call) -> None:
            if (name := self.names[call.layer]) in self.learning:
                with torch.enable_grad():
                    error = self.error(call)
                    error.backward()
                losses[name] = error.item()

        self.optimiser.zero_grad()
        with evaluating(self.model), torch.no_grad(), attending_as_before(learn):
            self.model(**batch)
        self.optimiser.step()
        return losses


def learnable(layer: nn.Module) -> list[nn.Parameter]:
    return [x for x in layer.parameters() if x.requires_grad]


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """The model in evaluation, so that nothing drops out, and afterwards as it was."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


def error_of_outputs(call: Call) -> Float[Tensor, ""]:
    out, aim = call.layer(call.q, call.k, call.v, valid=call.valid), call.out
    real = real_queries(call)[..., None, None]
    return ((out - aim) * real).square().sum() / (aim * real).square().sum()


def error_of_weights(call: Call) -> Float[Tensor, ""]:
    real = real_queries(call)[:, None].expand(-1, call.q.shape[1], -1)
    aim = softmax_weights(call.q, call.k, valid=call.valid, causal=call.layer.causal)
    mine = mechanism_weights(call.layer.mechanism, call.q, call.k, call.v, valid=call.valid)
    return -(aim * mine.clamp_min(SMALLEST_WEIGHT).log()).sum(-1)[real].mean()


def real_queries(call: Call) -> Bool[Tensor, "b t"]:
    """All of them in cross-attention, where padding is known of keys alone."""
    queries, keys = call.q.shape[2], call.k.shape[2]
    if call.valid is None or queries != keys:
        return call.q.new_ones(len(call.q), queries, dtype=torch.bool)
    return call.valid


ERRORS: Mapping[str, Callable[[Call], Float[Tensor, ""]]] = {
    "outputs": error_of_outputs,
    "weights": error_of_weights,
}
