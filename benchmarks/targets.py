"""The claims as data: what is run, against whom, and by how much it is to win.

A target is a ratio: the rival's time, or its memory, over ours. "kernel" is subquad with its compiled
kernels, "torch" its PyTorch backends. Shapes are batch 1, 8 heads of 64, float32, unless a row says
otherwise.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal

HEADS, WIDTH = 8, 64
GATE = 0.8  # of a target's ratio: below that, at one thread, the command fails
FUSED = "fused softmax"
OWN_FLOAT32 = "our own float32"
QUICK = 4096  # tokens: --quick leaves longer sequences out, unless a row has no shorter ones
LOW = 1 / 1.2  # "within 1.2 times of our own float32"

Tier = Literal["kernel", "torch"]
Operation = Literal["forward", "forward and backward", "step", "training step"]
TIERS: tuple[Tier, ...] = ("kernel", "torch")


@dataclass(frozen=True, kw_only=True)
class Target:
    """`ratio` is the rival's figure over ours. None: 0.6 / (the part of all pairs that is seen)."""

    tier: Tier
    rival: str
    length: int
    ratio: float | None
    figure: Literal["time", "memory"] = "time"


@dataclass(frozen=True, kw_only=True)
class Row:
    """One kind of work by one mechanism, and what is asked of it."""

    name: str
    title: str
    attention: str
    options: Mapping[str, Any] = field(default_factory=dict)
    causal: bool = False
    operation: Operation = "forward"
    dtype: str = "float32"
    targets: tuple[Target, ...]
    roofline: Mapping[Tier, float | None] = field(default_factory=dict)  # part of it to be reached, if asked

    @property
    def lengths(self) -> tuple[int, ...]:
        return tuple(sorted({target.length for target in self.targets}))

    def rivals(self, length: int) -> tuple[str, ...]:
        """Whoever a target names at that length, the fused softmax before others."""
        named = {target.rival: None for target in self.targets if target.length == length}
        return tuple(sorted(named, key=lambda rival: rival != FUSED))


def against(
    rival: str, tier: Tier, ratios: Mapping[int, float | None], **settings: Any
) -> tuple[Target, ...]:
    """Targets by length."""
    return tuple(
        Target(tier=tier, rival=rival, length=length, ratio=ratio, **settings)
        for length, ratio in ratios.items()
    )


def low(name: str, attention: str, dtype: str, **settings: Any) -> Row:
    targets = (*against(OWN_FLOAT32, "kernel", {2048: LOW}), *against(OWN_FLOAT32, "torch", {2048: LOW}))
    return Row(
        name=f"{name}-{dtype}",
        title=f"{name} in {dtype}, forward",
        attention=attention,
        dtype=dtype,
        targets=targets,
        **settings,
    )


def training(name: str, **settings: Any) -> Row:
    return Row(
        name=f"training-{name}",
        title=f"training step of an encoder, 4 layers, 256 wide, {name}",
        operation="training step",
        roofline={"kernel": None},
        **settings,
    )


PERFORMER, COMPILED = "performer-pytorch", "performer-pytorch, compiled"
EXTENDED, FAST = "performer-pytorch on fast-transformers", "fast-transformers"
FLEX, LOCAL = "FlexAttention, compiled", "local-attention"
M256: Mapping[str, Any] = MappingProxyType({"features": 256})
M64: Mapping[str, Any] = MappingProxyType({"features": 64})
GLOBAL_WINDOW = MappingProxyType({"expr": "Local(128) | Global(16)"})

ROWS: tuple[Row, ...] = (
    Row(
        name="favor",
        title="FAVOR+ m = 256, forward",
        attention="performer",
        options=M256,
        targets=(
            *against(FUSED, "kernel", {1024: 2, 2048: 4, 4096: 8, 8192: 15, 16384: 28}),
            *against(FUSED, "torch", {1024: 1.3, 2048: 2.6, 4096: 4, 8192: 9}),
            *against(PERFORMER, "kernel", {4096: 6.5, 8192: 6.5}),
            *against(PERFORMER, "torch", {4096: 3.5}),
            *against(COMPILED, "kernel", {4096: 2.3}),
        ),
        roofline={"kernel": 0.9, "torch": 0.55},
    ),
    Row(
        name="favor-training",
        title="FAVOR+ m = 256, forward and backward",
        attention="performer",
        options=M256,
        operation="forward and backward",
        targets=(
            *against(FUSED, "kernel", {1024: 2.5, 2048: 5, 4096: 10}),
            *against(PERFORMER, "kernel", {4096: 4.8}),
            *against(PERFORMER, "kernel", {4096: 5}, figure="memory"),
            *against(COMPILED, "kernel", {4096: 2}),
        ),
        roofline={"kernel": 0.65},
    ),
    Row(
        name="favor-causal",
        title="causal FAVOR+ m = 256, forward",
        attention="performer",
        options=M256,
        causal=True,
        targets=(
            *against(FUSED, "kernel", {2048: 2.4, 4096: 3.9, 16384: 14}),
            *against(EXTENDED, "kernel", {4096: 5.8}),
            *against(PERFORMER, "kernel", {2048: 40}),
        ),
        roofline={"kernel": 0.85},
    ),
    Row(
        name="linear-causal",
        title="causal linear m = 64, forward",
        attention="linear",
        causal=True,
        targets=(
            *against(FUSED, "kernel", {2048: 12, 4096: 20, 8192: 40}),
            *against(FUSED, "torch", {2048: 4, 4096: 6.7, 8192: 13.3}),
            *against(FAST, "kernel", {4096: 5}),
            *against("fla linear", "kernel", {4096: 8}),
        ),
        roofline={"kernel": 0.7},
    ),
    Row(
        name="linear-causal-training",
        title="causal linear m = 64, forward and backward",
        attention="linear",
        causal=True,
        operation="forward and backward",
        targets=(
            *against(FUSED, "kernel", {2048: 10, 4096: 18}),
            *against(FAST, "kernel", {4096: 5}),
            *against(FAST, "kernel", {4096: 2}, figure="memory"),
        ),
        roofline={"kernel": 0.6},
    ),
    Row(
        name="retention",
        title="retention (one decay a head), forward",
        attention="retention",
        causal=True,
        targets=(
            *against(FUSED, "torch", {4096: 10}),
            *against(FUSED, "kernel", {4096: 18}),
            *against("fla retention", "torch", {4096: 1.9}),
            *against("fla retention", "kernel", {4096: 4}),
        ),
        roofline={"kernel": 0.6},
    ),
    Row(
        name="gated-linear",
        title="GLA (a decay for each channel), forward",
        attention="gated-linear",
        causal=True,
        targets=(
            *against(FUSED, "torch", {4096: 10}),
            *against(FUSED, "kernel", {4096: 18}),
            *against("fla gated", "torch", {4096: 1.9}),
            *against("fla gated", "kernel", {4096: 4}),
        ),
        roofline={"kernel": 0.6},
    ),
    Row(
        name="delta",
        title="delta rule, forward",
        attention="delta",
        causal=True,
        targets=(
            *against(FUSED, "torch", {4096: 3}),
            *against(FUSED, "kernel", {4096: 10}),
            *against("fla delta", "kernel", {4096: 3}),
        ),
        roofline={"kernel": 0.5},
    ),
    Row(
        name="window",
        title="sliding window 256, forward",
        attention="local",
        options={"width": 256},
        causal=True,
        targets=(
            *against(FUSED, "kernel", {2048: 4, 4096: 7.5}),
            *against(FUSED, "torch", {2048: 2.5, 4096: 4}),
            *against(LOCAL, "kernel", {4096: 7}),
            *against(FLEX, "kernel", {4096: 2}),
        ),
        roofline={"kernel": 0.78},
    ),
    Row(
        name="window-training",
        title="sliding window 256, forward and backward",
        attention="local",
        options={"width": 256},
        causal=True,
        operation="forward and backward",
        targets=(
            *against(FUSED, "torch", {2048: 3.6}),
            *against(FUSED, "kernel", {2048: 7}),
            *against(LOCAL, "torch", {2048: 3.9}),
            *against(LOCAL, "kernel", {2048: 7}),
        ),
        roofline={"torch": 0.5, "kernel": 0.75},
    ),
    *(
        Row(
            name=f"{name}{'' if operation == 'forward' else '-training'}",
            title=f"{title}, {operation}",
            attention=attention,
            options=options,
            operation=operation,
            targets=(
                *against(FUSED, "kernel", {4096: None}),
                *against(FUSED, "torch", {4096: None}),
                *(against(FLEX, "torch", {4096: 1.5}) if operation == "forward" else ()),
            ),
            roofline={"kernel": 0.5, "torch": 0.5},
        )
        for name, title, attention, options in (
            ("window-global", "window 128 + 16 global", "pattern", GLOBAL_WINDOW),
            ("bigbird", "BigBird", "bigbird", {}),
        )
        for operation in ("forward", "forward and backward")
    ),
    Row(
        name="linformer",
        title="Linformer k = 256, forward",
        attention="linformer",
        options={"rank": 256},
        targets=(
            *against(FUSED, "kernel", {4096: 8, 16384: 25}),
            *against("linformer", "kernel", {4096: 2, 16384: 2}),
        ),
        roofline={"kernel": 0.75},
    ),
    Row(
        name="nystrom",
        title="Nyström 64, forward",
        attention="nystromformer",
        options={"landmarks": 64, "kernel": 0},
        targets=(
            *against(FUSED, "kernel", {4096: 15, 16384: 60}),
            *against("nystrom-attention", "kernel", {4096: 1.15, 16384: 2.3}),
        ),
        roofline={"kernel": 0.6},
    ),
    Row(
        name="reformer",
        title="Reformer, buckets of 64, 8 rounds, forward",
        attention="reformer",
        targets=(*against(FUSED, "kernel", {8192: 2}), *against("reformer-pytorch", "kernel", {8192: 2})),
    ),
    Row(
        name="routing",
        title="Routing, 32 clusters of 256, forward",
        attention="routing",
        options={"clusters": 32, "window": 256},
        targets=(*against(FUSED, "kernel", {8192: 2}), *against("routing-transformer", "kernel", {8192: 2})),
    ),
    Row(
        name="decoding",
        title="decoding, one step, m = 64",
        attention="linear",
        causal=True,
        operation="step",
        targets=(
            *against(FUSED, "kernel", {1024: 4, 8192: 70, 32768: 270}),
            *against(FAST, "kernel", {1024: 10}),
            *against(FAST, "torch", {1024: 6}),
        ),
    ),
    *(
        low(name, attention, dtype, options=options, causal=causal)
        for dtype in ("bfloat16", "float16")
        for name, attention, options, causal in (
            ("favor", "performer", M256, False),
            ("linear-causal", "linear", {}, True),
            ("window", "local", {"width": 256}, True),
            ("bigbird", "bigbird", {}, False),
            ("retention", "retention", {}, True),
            ("gated-linear", "gated-linear", {}, True),
            ("delta", "delta", {}, True),
            ("linformer", "linformer", {"rank": 256}, False),
            ("nystrom", "nystromformer", {"landmarks": 64, "kernel": 0}, False),
            ("reformer", "reformer", {}, False),
        )
    ),
    training(
        "performer",
        attention="performer",
        options=M64,
        targets=(
            *against(FUSED, "kernel", {2048: 2, 4096: 4, 8192: 8}),
            *against(PERFORMER, "kernel", {4096: 2}),
        ),
    ),
    training(
        "linear",
        attention="linear",
        targets=against(FUSED, "kernel", {2048: 2, 4096: 4, 8192: 8}),
    ),
    training(
        "linear-causal",
        attention="linear",
        causal=True,
        targets=(*against(FUSED, "kernel", {4096: 2}), *against(FAST, "kernel", {4096: 2})),
    ),
)
