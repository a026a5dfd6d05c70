"""What users ask for, with every default in one place.

No torch: `subquad compare --help` reads its defaults here.
"""

from dataclasses import dataclass, field
from typing import Annotated

from subquad.bounds import Bound, Count, CountOrZero, Positive, PositiveOrZero, Share, one_of, require
from subquad.config import Config, Help, ModelConfig

# From the simplest: of equals the first is recommended. No more than 64 keys stand for all, or are near: a
# probe of 256 tokens then shows what such a mechanism cannot do.
CANDIDATES = (
    "linear",
    "performer:features=64",
    "local:width=64",
    "linformer:rank=64",
    "nystromformer:landmarks=32",
    "bigbird:block=16",
    "gated-delta",
)
# Of q, k and v alone, in both forms, whatever the sizes.
STAND_INS = ("linear", "hedgehog", "performer:features=256", "local:width=32")
TASK_KINDS = ("any", "language", "text", "events", "image", "local")
# At 512 events two segments at most are in long-term memory: 128 bumps hold what 512 would, in less time.
ATTENTION = ("softmax", "linear", "performer", "infinity:basis=128,samples=128")
# People's data, and a probe that is learnt within the steps below where a mechanism finds what it looks for.
TASKS = ("transactions", "recall:tokens=32,pairs=4,keys=8")
LENGTHS = (512, 1024, 2048, 4096, 8192)
MULTIPLES = (1, 2, 4, 8, 16)  # of a comparison's greatest length: those of its bench unless it names others
CELL = 300.0  # seconds for one cell of a comparison's bench: what takes longer has answered
DTYPES = ("float32", "bfloat16", "float16", "float64")
PRECISIONS = ("32-true", "bf16-mixed", "16-mixed", "bf16-true", "64-true")  # of Lightning Fabric


@dataclass(frozen=True, kw_only=True)
class TrainingConfig(Config):
    """How a model is trained.

    The learning rate rises to the highest in the first tenth of the steps, and falls to zero with the last.
    """

    steps: Annotated[Count, Help("Steps of the optimiser.")] = 200
    batch: Annotated[Count, Help("Histories at a time.")] = 16
    accumulate: Annotated[Count, Help("Batches of a step, whose gradients add up.")] = 1
    learning_rate: Annotated[Positive, Help("The highest.")] = 1e-3
    weight_decay: Annotated[PositiveOrZero, Help("Of AdamW.")] = 0.01
    clip: Annotated[Positive, Help("The largest norm of a gradient.")] = 1.0
    precision: Annotated[str, one_of(*PRECISIONS), Help(f"{', '.join(PRECISIONS)}.")] = "32-true"
    carry: Annotated[
        CountOrZero,
        Help(
            "Carry each row's state from window to window of a document, in training and in tests, and stop "
            "gradients every so many windows. 0: each window by itself."
        ),
    ] = 0
    devices: Annotated[
        Count, Help("Devices that train a model together, each with its share of a step's batches.")
    ] = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.accumulate % self.devices:
            raise ValueError(
                f"devices={self.devices} share the batches of a step, and a step has "
                f"accumulate={self.accumulate}: let accumulate be a multiple of devices"
            )
        if self.carry and self.devices > 1:
            raise ValueError(
                f"carry={self.carry} hands a state from batch to batch, which devices={self.devices} would "
                "read side by side: leave one of them out"
            )
        if self.carry and self.accumulate % self.carry:
            raise ValueError(
                f"carry={self.carry} lets gradients flow through {self.carry} windows of a step, and a step "
                f"has accumulate={self.accumulate} batches: let accumulate be a multiple of carry"
            )


@dataclass(frozen=True, kw_only=True)
class InputsConfig(Config):
    """The inputs on which a mechanism is timed."""

    heads: Annotated[Count, Help("Heads.")] = 4
    head_dim: Annotated[Count, Help("Width of a head.")] = 32
    batch: Annotated[Count, Help("Sequences at a time.")] = 1
    dtype: Annotated[str, one_of(*DTYPES), Help(f"{', '.join(DTYPES[:-1])} or {DTYPES[-1]}.")] = "float32"


@dataclass(frozen=True, kw_only=True)
class ActivationsConfig(Config):
    """Random q, k and v on which mechanisms are compared with softmax attention."""

    length: Annotated[Count, Help("Tokens; work grows with their cube.")] = 256
    heads: Annotated[Count, Help("Heads.")] = 4
    head_dim: Annotated[Count, Help("Width of a head, at least 2.")] = 32
    clusters: Annotated[
        CountOrZero,
        Help(
            "Directions about which queries and keys gather, so that a query matches the keys of its own. "
            "0: each query matches one key."
        ),
    ] = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.head_dim < 2:
            raise ValueError("head_dim must be at least 2, for there to be angles")


@dataclass(frozen=True, kw_only=True)
class Comparison(Config):
    """What is compared, on what, and how. The defaults take six to ten minutes on two CPU cores.

    attention: mechanisms, each "NAME" or "NAME:option=value,…".
    tasks: each "NAME" or "NAME:option=value,…"; "target=NAME" is among the options.
    target: what is predicted, where there is one task. None: its first target, or what the schema says.
    length: tokens of a sequence at most, for all tasks. None: what each task says.
    seeds: fits of each mechanism.
    bench: whether time and memory by length are measured too.
    lengths: of the bench. None given: 1, 2, 4, 8 and 16 times that of the longest task.
    workers: fits at a time on a machine, which share its threads.
    executor: what runs them: processes of this machine ("local"), a Ray cluster ("ray", "ray:nodes=4"), or
        another package's by its name.
    device: "cpu", "cuda" or "mps". "auto": CUDA where there is one, else the CPU.
    timeout: seconds for one run.
    """

    attention: tuple[str, ...] = ATTENTION
    tasks: tuple[str, ...] = TASKS
    target: str | None = None
    length: int | None = None
    seeds: Count = 1
    model: ModelConfig = field(default_factory=ModelConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    bench: bool = True
    lengths: tuple[int, ...] = ()
    workers: Count = 1
    executor: str = "local"
    device: str = "auto"
    timeout: Positive = 6 * 3600.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.length is not None:
            require("length", self.length, Count)
        if not self.tasks:
            raise ValueError("no task is named")
        if self.target is not None and len(self.tasks) > 1:
            first = self.tasks[0].partition(":")[0]
            raise ValueError(
                f"target {self.target!r} is that of one task, and there are {len(self.tasks)}: "
                f"name it with its task, as in '{first}:target={self.target}'"
            )
        if self.training.carry and self.model.positions == "learnt":
            raise ValueError(
                "carry: a document is longer than its windows, and learnt positions end with them: take "
                "positions 'none', 'sinusoidal' or 'rotary'"
            )
        _each_once(self.lengths)
        if self.lengths and not self.bench:
            raise ValueError(f"lengths {list(self.lengths)} are those of the bench, which is left out")


@dataclass(frozen=True, kw_only=True)
class Benchmark(Config):
    """Which mechanisms are timed at which lengths, beside torch's fused attention.

    attention: mechanisms, each "NAME" or "NAME:option=value,…".
    lengths: in tokens.
    causal: whether causal forms are timed. False: the bidirectional one where there is one.
    peers: whether other packages are timed too, where they are installed.
    device: "cpu", "cuda" or "mps". "auto": CUDA where there is one, else the CPU.
    timeout: seconds for one cell.
    """

    attention: tuple[str, ...] = ATTENTION
    lengths: tuple[int, ...] = LENGTHS
    inputs: InputsConfig = field(default_factory=InputsConfig)
    causal: bool = False
    peers: bool = False
    device: str = "auto"
    timeout: Positive = 3600.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.lengths:
            raise ValueError("give at least one length")
        _each_once(self.lengths)


@dataclass(frozen=True, kw_only=True)
class Choice(Config):
    """What attention is wanted for, and how the candidates for it are measured.

    At 2,048 tokens the default candidates take about four minutes on a CPU core with `kind="language"`.

    length: tokens of a sequence. None: what the task reads at most.
    causal: whether a token may see those before it alone.
    streaming: whether tokens come one at a time, so that a mechanism needs a `step`; it is then causal.
    bounded: whether the state of a stream may not grow with it; it is then streaming.
    kind: what a model has to do, which says on which probes candidates are trained (`choice.PROBES`).
    memory_mb: 10 ** 6 bytes that one layer may take in training, or the state of its stream. None: no limit.
    attention: candidates, each "NAME" or "NAME:option=value,…", from the simplest.
    task: "NAME" or "NAME:option=value,…", of which length and causality are taken. None: no task.
    target: what is predicted on the task. None: its first target, or what the schema says.
    fit: whether candidates are trained on the task, in the place of probes.
    steps: of the optimiser, in each fit.
    seeds: fits of each candidate.
    inputs: the layer that is timed.
    device: "cpu", "cuda" or "mps". "auto": CUDA where there is one, else the CPU.
    timeout: seconds for one run.
    """

    length: int | None = None
    causal: bool = False
    streaming: bool = False
    bounded: bool = False
    kind: Annotated[str, one_of(*TASK_KINDS)] = "any"
    memory_mb: float | None = None
    attention: tuple[str, ...] = CANDIDATES
    task: str | None = None
    target: str | None = None
    fit: bool = False
    steps: Count = 300
    seeds: Count = 1
    inputs: InputsConfig = field(default_factory=InputsConfig)
    device: str = "auto"
    timeout: Positive = 900.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.length is not None:
            require("length", self.length, Annotated[int, Bound("at least 4", lambda n: n >= 4)])
        if self.memory_mb is not None:
            require("memory_mb", self.memory_mb, Positive)
        if self.task is None:
            if self.length is None:
                raise ValueError("give a length in tokens, or a task that has one")
            if self.fit or self.target is not None:
                raise ValueError("a fit and a target are those of a task: name one")
        elif self.fit and self.kind != "any":
            raise ValueError(f"with a fit the task itself is the test: leave the kind {self.kind!r} out")


@dataclass(frozen=True, kw_only=True)
class FidelityStudy(Config):
    """How far mechanisms are from softmax attention on random q, k and v: which, and on which.

    attention: mechanisms, each "NAME" or "NAME:option=value,…".
    activations: their sizes.
    norms: |q| |k| / sqrt(d), the score of a query and a key that point the same way.
    cosines: between a query and the keys that it matches.
    causal: whether a token sees those before it alone.
    seeds: draws of the activations, and of what is random in a mechanism.
    """

    attention: tuple[str, ...] = STAND_INS
    activations: ActivationsConfig = field(default_factory=ActivationsConfig)
    norms: tuple[float, ...] = (1.0, 4.0, 16.0)
    cosines: tuple[float, ...] = (0.5, 0.9)
    causal: bool = False
    seeds: Count = 3

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, values, bound in (("norm", self.norms, Positive), ("cosine", self.cosines, Share)):
            if not values:
                raise ValueError(f"give at least one {name}")
            for value in values:
                require(name, value, bound)
            if len(set(values)) < len(values):
                raise ValueError(f"give each {name} once, not {list(values)}")


def _each_once(lengths: tuple[int, ...]) -> None:
    for length in lengths:
        require("length", length, Count)
    if len(set(lengths)) < len(lengths):
        raise ValueError(f"give each length once, not {list(lengths)}")
