"""One training loop for every mechanism.

Rows of a comparison differ in the mechanism alone: the same data order, the same initial weights
elsewhere, the same optimiser, schedule and budget.

With `carry`, rows of a batch are streams, and what the model remembers goes from batch to batch: training is
truncated back-propagation through time, and validation and test read whole documents.

A checkpoint every few steps holds all that the rest of the training depends on, so that a run killed at
any moment and started again ends as if nothing had happened: bit for bit on a CPU.
"""

import math
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from typing_extensions import TypedDict  # pydantic asks for it below Python 3.12

from subquad import checkpoint
from subquad.documents import validated
from subquad.experiments.fabric import fabric_of
from subquad.experiments.model import build_model
from subquad.experiments.spec import Fit
from subquad.experiments.streams import StreamReader
from subquad.fields import Batch, Split
from subquad.files import set_aside
from subquad.nn import state as states
from subquad.nn.encoder import EncoderState
from subquad.nn.redraw import redraw
from subquad.objectives import Judged
from subquad.ops.shared.generators import digest
from subquad.task import Dataset

CHECKPOINT_EVERY = 25  # steps: what a kill can cost
POINTS = 5  # of the training loss from one validation to the next

Tell = Callable[[str, int, float | None], None]  # phase, step, latest loss
Note = Callable[[str], None]  # a line for people


class Step(NamedTuple):
    """What one step of the optimiser saw."""

    loss: float
    examples: int
    tokens: int  # real ones


@dataclass
class Course:
    """How far a training has come: the numbers of a checkpoint."""

    step: int = 0
    epoch: int = 0
    taken: int = 0  # batches of this epoch
    examples: int = 0
    losses: list[float] = field(default_factory=list)  # since the curve's last point
    curve: list[dict[str, Any]] = field(default_factory=list)
    best: dict[str, float] = field(default_factory=dict)  # on validation
    best_step: int = 0
    seconds: float = 0.0  # of training alone, without each process's first step, which warms up
    timed_examples: int = 0
    timed_tokens: int = 0


class Numbers(TypedDict):
    """What a checkpoint holds beside tensors."""

    course: Course
    precision: dict[str, Any]


class Training:
    """A run of the loop: model, optimiser, data, and how far it has come."""

    def __init__(
        self, spec: Fit, data: Dataset, *, checkpoint_path: Path, tell: Tell, note: Note = warnings.warn
    ) -> None:
        """Begin, or take up what the checkpoint at that path holds. `note` is told where that is damaged."""
        self.spec, self.config = spec, spec.training
        self.data, self.tell, self.note = data, tell, note
        self.checkpoint_path = checkpoint_path
        self.set_up()
        self.course = Course()
        self.best: checkpoint.Tensors = {}  # weights
        self.stream = self.new_stream()  # of the training split
        self.row_bytes = 0.0  # of the state that was carried when a split was last evaluated, at most
        torch.manual_seed(spec.seed)  # dropout
        if not self.first:
            self.fabric.barrier()  # the first rank sets a damaged checkpoint aside
        self.resume()
        if self.first:
            self.fabric.barrier()

    def set_up(self) -> None:
        """The model before its first step, on the device of this rank, or of this process alone."""
        self.fabric = fabric_of(self.spec)
        self.model = build_model(self.spec, self.data)
        optimiser = torch.optim.AdamW(
            parameter_groups(self.model, self.config.weight_decay), lr=self.config.learning_rate
        )
        with warnings.catch_warnings():
            # its successor is not in torch 2.6
            warnings.filterwarnings("ignore", message="`broadcast_buffers`")
            self.network, self.optimiser = self.fabric.setup(self.model, optimiser)

    @property
    def first(self) -> bool:
        """Whether this is the rank that validates, and writes."""
        return self.fabric.global_rank == 0

    def leave_group(self) -> None:
        """Go on alone with the best weights, when the other ranks are done."""
        self.set_up()
        self.model.load_state_dict(self.best)

    def run(self) -> None:
        """Train to the last step, and go back to the weights that were best on validation.

        Raises `FloatingPointError` when the loss is nan or infinite.
        """
        batches = self.batches()
        warm = False
        while (course := self.course).step < self.config.steps:
            start = time.perf_counter()
            step = self.step(batches)
            if warm:
                course.seconds += time.perf_counter() - start
                course.timed_examples += step.examples
                course.timed_tokens += step.tokens
            warm = True
            self.tell("train", course.step, step.loss)
            self.log()
            if self.first and course.step % CHECKPOINT_EVERY == 0 and course.step < self.config.steps:
                self.keep()
        if self.first:
            self.model.load_state_dict(self.best)

    def step(self, batches: Iterator[Batch]) -> Step:
        """One step of the optimiser over `accumulate` batches; gradients flow through `carry` in turn.

        Of several ranks each learns from its share of them, and all take the same step.
        """
        rank, ranks = self.fabric.global_rank, self.fabric.world_size
        if ranks > 1:
            torch.manual_seed(digest(self.spec.seed, "rank", rank, self.course.step))  # dropout
        for group in self.optimiser.param_groups:
            group["lr"] = learning_rate(self.spec, self.course.step)
        self.network.train()
        if redraw(self.model, step=self.course.step, seed=self.spec.seed):
            self.stream = self.new_stream()  # the state is of features that are gone
        self.optimiser.zero_grad()
        examples = tokens = 0
        total = 0.0
        parts = self.config.accumulate // self.span
        for part in range(parts):
            seen = [next(batches) for _ in range(self.span)]
            if part % ranks == rank:
                with self.fabric.no_backward_sync(self.network, enabled=part + ranks < parts):
                    total += self.learn(seen)
            examples += sum(int((batch.example >= 0).sum()) for batch in seen)
            tokens += sum(int(batch.valid.sum()) for batch in seen)
        mean = self.sum_of_ranks(total) / self.config.accumulate
        if not math.isfinite(mean):
            raise FloatingPointError(f"the training loss is {mean} at step {self.course.step + 1}")
        self.fabric.clip_gradients(self.network, self.optimiser, max_norm=self.config.clip)
        self.optimiser.step()
        self.model.encoder.update()
        self.course.step += 1
        self.course.examples += examples
        self.course.losses.append(mean)
        return Step(mean, examples, tokens)

    @property
    def share(self) -> int:
        """Batches of a step from which this rank learns; the ranks' gradients are averaged."""
        return self.config.accumulate // self.fabric.world_size

    @property
    def span(self) -> int:
        """Batches through which gradients flow."""
        return max(1, self.config.carry)

    def learn(self, batches: Sequence[Batch]) -> float:
        """Add the gradients of batches that are read one after the other; the sum of their losses."""
        losses, total = [], 0.0
        for batch in batches:
            loss = self.data.objective.loss(self.output(batch, self.stream), batch)
            losses.append((loss + self.model.penalty()) / self.share)
            total += loss.item()
        self.fabric.backward(torch.stack(losses).sum())
        if self.stream:
            self.stream.stop_gradients()
        return total

    def sum_of_ranks(self, number: float) -> float:
        if self.fabric.world_size == 1:
            return number
        own = torch.tensor(number, dtype=torch.float64, device=self.fabric.device)
        total = self.fabric.all_reduce(own, reduce_op="sum")
        assert isinstance(total, Tensor)
        return total.item()

    def output(self, batch: Batch, stream: StreamReader | None = None) -> Tensor:
        if stream:
            return stream(batch)
        padded = None if batch.valid.all() else batch.valid
        return self.network(batch.inputs, padded)

    def new_stream(self) -> StreamReader | None:
        """A reader that remembers nothing yet; None where each batch is read by itself."""
        return StreamReader(self.model, context=self.fabric.autocast) if self.config.carry else None

    def log(self) -> None:
        """Add the curve's next point where one is due, and remember the best weights."""
        course, every = self.course, self.spec.validate
        validate = course.step == self.config.steps or course.step % every == 0
        if not validate and course.step % max(1, every // POINTS):
            return
        point: dict[str, Any] = {
            "step": course.step,
            "examples": course.examples,
            "loss": sum(course.losses) / len(course.losses),
        }
        course.losses.clear()
        course.curve.append(point)
        if validate and self.first:
            self.tell("validate", course.step, None)
            point["validation"] = scores = self.evaluate("validation").scores
            if not course.best or self.better(scores, course.best):
                course.best, course.best_step = scores, course.step
                self.best = checkpoint.weights(self.model)

    def better(self, scores: dict[str, float], best: dict[str, float]) -> bool:
        """Whether validation says so; of equal scores, the one with the lower loss."""
        metric = self.data.objective.metric
        sign = 1 if self.data.objective.higher_is_better else -1
        return (sign * scores[metric], -scores["loss"]) > (sign * best[metric], -best["loss"])

    @torch.no_grad()
    def evaluate(self, split: Split) -> Judged:
        """The metric and the mean loss over every example of a split.

        Raises `FloatingPointError` when the loss is nan or infinite.
        """
        self.network.eval()
        scorer, stream = self.data.objective.scorer(), self.new_stream()
        for batch in self.epoch(split, number=0, shuffle=False):
            scorer.add(self.output(batch, stream).float(), batch)
        self.row_bytes = stream.row_bytes if stream else 0.0
        if not math.isfinite(scorer.loss):
            raise FloatingPointError(f"the {split} loss is {scorer.loss} after step {self.course.step}")
        judged = scorer.result()
        return judged._replace(breakdown={**judged.breakdown, **scorer.breakdown(self.data.kinds(split))})

    def epoch(self, split: Split, *, number: int, shuffle: bool) -> Iterator[Batch]:
        order = {"size": self.config.batch, "seed": self.spec.seed, "epoch": number, "shuffle": shuffle}
        batches = (
            self.data.streams(split, **order)
            if self.config.carry
            else self.data.batches(split, length=self.spec.data.length, **order)
        )
        for batch in batches:
            yield self.fabric.to_device(batch)

    def batches(self) -> Iterator[Batch]:
        """Training batches without end, from where the course stands."""
        course = self.course
        while True:
            for index, batch in enumerate(self.epoch("train", number=course.epoch, shuffle=True)):
                if index >= course.taken:
                    course.taken += 1
                    yield batch
            course.epoch += 1
            course.taken = 0

    def keep(self) -> None:
        checkpoint.write(
            self.checkpoint_path,
            {
                "weights": checkpoint.weights(self.model),
                "best": self.best,
                "moments": checkpoint.moments(self.optimiser.optimizer),
                "generators": checkpoint.generators(self.fabric.device.type),
                "state": self.carried(),
            },
            {"course": asdict(self.course), "precision": self.fabric.strategy.precision.state_dict()},
        )

    def resume(self) -> None:
        try:
            stored = self.stored()
        except ValueError as damage:
            damaged = set_aside(self.checkpoint_path)
            self.note(f"{damage}; training begins anew, and the file is kept as {damaged.name}")
            return
        if stored is None:
            return
        tensors, numbers = stored
        self.model.load_state_dict(tensors["weights"])
        self.best = tensors.get("best", {})
        checkpoint.load_moments(self.optimiser.optimizer, tensors["moments"])
        checkpoint.load_generators(tensors["generators"])
        self.fabric.strategy.precision.load_state_dict(numbers["precision"])
        self.course = numbers["course"]
        if self.stream and (state := tensors.get("state")):
            self.stream.state = self.restored(state)

    def carried(self) -> checkpoint.Tensors:
        """What the rows of the training split remember, a tensor by its place in the state."""
        if not self.stream or not self.stream.state:
            return {}
        return {str(place): leaf for place, leaf in enumerate(states.leaves(self.stream.state))}

    def restored(self, tensors: checkpoint.Tensors) -> EncoderState:
        """The state of which `carried` gave the tensors."""
        ordered = [tensors[str(place)].to(self.fabric.device) for place in range(len(tensors))]
        return states.rebuild(self.model.encoder.initial_state(len(ordered[0])), ordered)

    def stored(self) -> tuple[dict[str, checkpoint.Tensors], Numbers] | None:
        """What the checkpoint holds; `ValueError` where that is not of this training."""
        if (stored := checkpoint.read(self.checkpoint_path)) is None:
            return None
        tensors, numbers = stored
        own = checkpoint.weights(self.model)
        for name in ("weights", "best"):
            if name == "weights" or name in tensors:
                checkpoint.check_alike(tensors.get(name, {}), own, name=name)
        held = len(tensors.get("state", {}))
        carried = len(states.leaves(self.model.encoder.initial_state(1))) if self.stream else 0
        if held != carried:
            raise ValueError(f"state: holds {held} tensors, and in this version {carried}")
        return tensors, validated(Numbers, numbers, extra="forbid")


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Weights decay; biases, gains and other vectors do not."""
    parameters = list(model.parameters())
    return [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]


def learning_rate(spec: Fit, step: int) -> float:
    """Of the step after `step` steps: linear warm-up, then a cosine to zero."""
    highest = spec.training.learning_rate
    if step < spec.warmup:
        return highest * (step + 1) / spec.warmup
    done = (step - spec.warmup) / max(1, spec.training.steps - spec.warmup)
    return highest * (1 + math.cos(math.pi * done)) / 2
