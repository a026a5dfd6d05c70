"""Fine-tuning after conversion: the whole model learns to give what it gave before.

Texts are enough, labels are not needed: the teacher is the model itself, as it was before it was converted.

    logits           the divergence KL(teacher || model) of each real token's distribution, in nats
    hidden states    |model's - teacher's|^2 / |teacher's|^2, over all real tokens, where there are no logits

With a rank only low-rank adapters of the attention layers' projections learn, and the mechanisms; they are
merged into the weights at the end (Hu et al.: LoRA. ICLR 2022, arXiv:2106.09685, by the package `peft`).
Hinton, Vinyals, Dean: Distilling the Knowledge in a Neural Network. arXiv:1503.02531. Attention transfer
first and adapters then are LoLCATs' order (arXiv:2410.10254), whose adapters learn from the next token.
"""

import copy
import warnings
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from subquad.extras import require
from subquad.integrations.huggingface.interface import NAME, attending_as_before
from subquad.integrations.huggingface.layers import attention_layers, converted_layers, require_pretrained
from subquad.integrations.huggingface.transfer import evaluating

LEARNING_RATE = 1e-4
CLIP = 1.0


def distil(
    model: nn.Module,
    batches: Iterable[Mapping[str, Any]],
    *,
    rank: int | None = None,
    learning_rate: float = LEARNING_RATE,
    clip: float = CLIP,
) -> list[float]:
    """Train a converted model to give what it gave before, one step of AdamW a batch; return the losses.

    Raises `ValueError` for a model that was not converted, and for a rank below 1. Nothing drops out.

    model: that `convert` has changed, perhaps after `transfer`. It is changed in place.
    batches: what the model is called with, by name: "input_ids", "attention_mask", …
    rank: of low-rank adapters of the projections in attention layers. None: all weights learn.
    learning_rate: of AdamW. Adapters take ten times as much.
    clip: the largest norm of a gradient.
    """
    learner = Distillation(model, rank=rank, learning_rate=learning_rate, clip=clip)
    try:
        return [learner.step(batch) for batch in batches]
    finally:
        learner.finish()


class Original:
    """A copy of a converted model that attends as it did before it was converted."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = copy.deepcopy(model).eval()

    @torch.no_grad()
    def __call__(self, batch: Mapping[str, Any]) -> Any:
        with attending_as_before(lambda _: None):
            return self.model(**batch)


class Distillation:
    """The same step by step, for whoever keeps count. Call `finish` in the end.

    original: the teacher. None: the model is still what it was converted from, and is copied.
    Other parameters are those of `distil`.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        rank: int | None = None,
        learning_rate: float = LEARNING_RATE,
        clip: float = CLIP,
        original: Original | None = None,
    ) -> None:
        self.model = require_pretrained(model)
        if rank is not None and rank < 1:
            raise ValueError(
                f"adapters have a rank of at least 1, not {rank}: leave it out, and all weights learn"
            )
        if not converted_layers(self.model):
            raise ValueError(
                f"{type(model).__name__} was not converted, and has nothing to win back: call convert"
            )
        self.original, self.clip = original or Original(self.model), clip
        self.learnable = [x for x in self.model.parameters() if x.requires_grad]
        self.adapted = with_adapters(self.model, rank) if rank else None
        self.learning = [x for x in self.model.parameters() if x.requires_grad]
        self.optimiser = torch.optim.AdamW(self.learning, learning_rate)

    def step(self, batch: Mapping[str, Any]) -> float:
        """Learn from one batch; the loss before."""
        with evaluating(self.model):
            loss = divergence(self.model(**batch), self.original(batch), batch)
        self.optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.learning, self.clip)
        self.optimiser.step()
        return loss.item()

    def finish(self) -> None:
        """Merge the adapters into the weights, and let those learn again that did before."""
        if self.adapted is not None:
            self.adapted.merge_and_unload()
        for x in self.learnable:
            x.requires_grad_()


def divergence(output: Any, aim: Any, batch: Mapping[str, Any]) -> Float[Tensor, ""]:
    """Of what the model gives from what the teacher gives, over real tokens."""
    if (logits := getattr(output, "logits", None)) is not None:
        told, wanted = logits.log_softmax(-1), aim.logits.log_softmax(-1)
        each = F.kl_div(told, wanted, log_target=True, reduction="none").sum(-1)
        return each[real_tokens(each, batch)].mean()
    error, whole = (output[0] - aim[0]).square().sum(-1), aim[0].square().sum(-1)
    real = real_tokens(whole, batch)
    return error[real].sum() / whole[real].sum()


def real_tokens(each: Tensor, batch: Mapping[str, Any]) -> Tensor:
    """Where a decoder reads, its own mask counts."""
    mask = batch.get("decoder_attention_mask" if "decoder_input_ids" in batch else "attention_mask")
    if mask is None or mask.shape != each.shape:
        return torch.ones_like(each, dtype=torch.bool)
    return mask.bool()


def with_adapters(model: PreTrainedModel, rank: int) -> Any:
    """The model in peft's wrapper, whose adapters learn, and mechanisms; nothing else does."""
    require("peft", extra="huggingface", user="adapters")
    from peft import LoraConfig, get_peft_model

    layers = attention_layers(model).values()
    projections = [
        name
        for name, module in model.named_modules()
        if type(module).__name__ in ("Linear", "Conv1D")
        and any(module is part for layer in layers for part in layer.module.modules())
        and f".{NAME}." not in name
    ]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
        warnings.filterwarnings("ignore", "fan_in_fan_out is set to False", UserWarning)  # and mended
        adapted = get_peft_model(model, LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=projections))
    for ours in converted_layers(model).values():
        ours.requires_grad_()
    return adapted
