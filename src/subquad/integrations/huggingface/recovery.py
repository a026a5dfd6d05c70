"""Win back what a conversion lost: attention transfer, then distillation, with what each of them gave.

The course goes on from a checkpoint with the batches and the learning rates that it would have had, and ends
with the same model.
"""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import nn
from transformers import PreTrainedModel

from subquad import checkpoint
from subquad.config import RecoveryConfig
from subquad.integrations.huggingface.distil import Distillation, Original
from subquad.integrations.huggingface.interface import NAME
from subquad.integrations.huggingface.layers import converted_layers, require_pretrained
from subquad.integrations.huggingface.quality import Batch, quality
from subquad.integrations.huggingface.transfer import Transfer, learnable

CHECKPOINT_S = 60.0  # seconds of work that a kill can cost

OnProgress = Callable[[str, float], None]  # what is done, and the share of it that is


@runtime_checkable
class Batches(Protocol):
    """What is learnt from, such as `texts.Texts`: the batch of each step, by its number."""

    def __getitem__(self, number: int, /) -> Batch: ...


@runtime_checkable
class Learner(Protocol):
    """`Transfer` or `Distillation`."""

    @property
    def optimiser(self) -> torch.optim.Optimizer: ...

    def step(self, batch: Batch) -> Any: ...


@dataclass(frozen=True, kw_only=True)
class Stage:
    """What a model is worth when a stage is over.

    name: "original", "converted", "transfer" or "distilled".
    steps: of the optimiser.
    seconds: that they took.
    quality: the numbers of `quality`.
    loss: of each step; of a transfer the mean over layers.
    """

    name: str
    quality: Mapping[str, float]
    steps: int = 0
    seconds: float = 0.0
    loss: list[float] = field(default_factory=list)


@dataclass
class Course:
    """How far a recovery has come."""

    done: list[Stage] = field(default_factory=list)
    step: int = 0  # of the stage under way
    seconds: float = 0.0
    loss: list[float] = field(default_factory=list)


def recover(
    model: nn.Module,
    training: Batches,
    held_out: Sequence[Batch],
    *,
    config: RecoveryConfig | None = None,
    tokenizer: Any = None,
    path: Path | None = None,
    tell: OnProgress | None = None,
) -> list[Stage]:
    """Train a converted model to give what it gave before; what it is worth at each stage.

    Mechanisms without weights of their own have no transfer. Nothing drops out.

    model: that `convert` has changed, and nothing has trained since. It is changed in place.
    training: the batch of each step, by its number: what a model is called with, by name.
    held_out: batches to measure on.
    config: steps and learning rates.
    tokenizer: of transformers, for bits per byte of models that predict the next token.
    path: of a checkpoint, from which what was interrupted goes on. The caller removes it in the end.
    tell: is called with what is done and the share of it.

    Raises `ValueError` for a model that was not converted, a checkpoint of another course, and where the loss
    is no number any more.
    """
    return Recovery(
        require_pretrained(model), training, held_out, config or RecoveryConfig(), tokenizer, path, tell
    ).run()


class Recovery:
    """The course of one model."""

    def __init__(
        self,
        model: PreTrainedModel,
        training: Batches,
        held_out: Sequence[Batch],
        config: RecoveryConfig,
        tokenizer: Any,
        path: Path | None,
        tell: OnProgress | None,
    ) -> None:
        self.model, self.training = model.eval(), training
        self.held_out = [self.moved(batch) for batch in held_out]
        self.config, self.path, self.tell = config, path, tell or (lambda _, __: None)
        predicts_next = model.can_generate() and not model.config.is_encoder_decoder
        self.counter = tokenizer if predicts_next else None
        self.original = Original(model)
        self.course = Course()
        self.saved = time.monotonic()

    def run(self) -> list[Stage]:
        stored = self.stored()
        if stored is None:
            self.end("original", self.original)
            self.end("converted", self.answer)
        for number, (name, steps, make) in enumerate(self.lessons(), 2):
            if number < len(self.course.done):
                continue
            if stored is not None and not self.course.step:
                self.load(stored, None)
                stored = None
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(number)  # adapters
                learner = make()
            if stored is not None:
                self.load(stored, learner)
                stored = None
            self.learn(name, steps, learner)
            if isinstance(learner, Distillation):
                learner.finish()
            self.end(name, self.answer)
            self.save(None)
        if stored is not None:
            self.load(stored, None)
        return self.course.done

    def lessons(self) -> Iterator[tuple[str, int, Callable[[], Learner]]]:
        """The stages that there are to learn in."""
        config, model = self.config, self.model
        if config.transfer and any(learnable(layer) for layer in converted_layers(model).values()):
            yield "transfer", config.transfer, lambda: Transfer(model, learning_rate=config.transfer_rate)
        if config.distil:
            rate = config.distil_rate * (10 if config.rank else 1)
            yield (
                "distilled",
                config.distil,
                lambda: Distillation(
                    model, rank=config.rank or None, learning_rate=rate, original=self.original
                ),
            )

    def learn(self, name: str, steps: int, learner: Learner) -> None:
        course = self.course
        rates = [group["lr"] for group in learner.optimiser.param_groups]
        for step in range(course.step, steps):
            began = time.perf_counter()
            for group, rate in zip(learner.optimiser.param_groups, rates, strict=True):
                group["lr"] = rate * (1 - step / steps)
            loss = learner.step(self.moved(self.training[step]))
            loss = sum(loss.values()) / len(loss) if isinstance(loss, Mapping) else loss
            if not math.isfinite(loss):
                raise ValueError(
                    f"the loss of step {step + 1} of {name} is {loss}: take a lower learning rate"
                )
            course.loss.append(loss)
            course.step = step + 1
            course.seconds += time.perf_counter() - began
            self.tell(name, course.step / steps)
            if time.monotonic() > self.saved + CHECKPOINT_S:
                self.save(learner)

    def moved(self, batch: Batch) -> Batch:
        """On the model's device."""
        return {name: x.to(self.model.device) for name, x in batch.items()}

    def answer(self, batch: Batch) -> Any:
        return self.model(**batch)

    def end(self, name: str, model: Callable[[Batch], Any]) -> None:
        """Measure what a stage gave, and be ready for the next."""
        course = self.course
        measured = quality(model, self.original, self.held_out, self.counter)
        course.done.append(
            Stage(
                name=name,
                quality=measured,
                steps=course.step,
                seconds=course.seconds,
                loss=course.loss,
            )
        )
        course.step, course.seconds, course.loss = 0, 0.0, []

    def save(self, learner: Learner | None) -> None:
        if self.path is None:
            return
        moments = checkpoint.moments(learner.optimiser) if learner else {}
        checkpoint.write(
            self.path,
            {"weights": checkpoint.weights(self.model), "moments": moments},
            {"identity": self.identity(), "course": asdict(self.course)},
        )
        self.saved = time.monotonic()

    def stored(self) -> dict[str, checkpoint.Tensors] | None:
        """The tensors of a checkpoint, whose course is gone on with."""
        if self.path is None or (stored := checkpoint.read(self.path)) is None:
            return None
        tensors, numbers = stored
        if numbers["identity"] != self.identity():
            raise ValueError(
                f"{str(self.path)!r} is of a recovery of another model, texts or steps: remove it, or choose "
                "another folder"
            )
        course = numbers["course"]
        self.course = Course(**{**course, "done": [Stage(**stage) for stage in course["done"]]})
        return tensors

    def load(self, tensors: dict[str, checkpoint.Tensors], learner: Learner | None) -> None:
        """What the checkpoint holds. Weights are those of the model with the adapters that it then had."""
        checkpoint.check_alike(tensors["weights"], self.model.state_dict(), name="weights")
        self.model.load_state_dict(tensors["weights"])
        if learner is not None and "moments" in tensors:
            checkpoint.load_moments(learner.optimiser, tensors["moments"])

    def identity(self) -> dict[str, Any]:
        """What a course depends on beside the weights of the model."""
        layers = getattr(self.model.config, NAME, {}).get("layers")
        texts = sha256()
        for batch in (self.training[0], self.held_out[0]):
            for name, x in batch.items():
                texts.update(f"{name} {tuple(x.shape)}".encode() + x.cpu().contiguous().numpy().tobytes())
        return {"config": asdict(self.config), "layers": layers, "texts": texts.hexdigest()}
