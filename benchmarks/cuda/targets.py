"""The claims on CUDA as data: what is run, against whom, and by how much ours is to be faster.

A target is a ratio: the rival's time over that of our fastest backend. Inputs are in bfloat16, 4 sequences of
8 heads of 64, on an H100 or an H200. Works stand in the order of their importance, in which they are run.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal

OURS = "subquad"  # where there is no choice of backends
FUSED = "fused softmax"  # of the same causality, without a mask
FLA, FLEX = "flash-linear-attention", "FlexAttention, same mask"
PERFORMER, COMPILED = "performer-pytorch", "performer-pytorch, compiled"
NYSTROM, LINFORMER, LOCAL, REFORMER = "nystrom-attention", "linformer", "local-attention", "reformer-pytorch"
WITHIN = 1 / 1.05  # "within 5 % of"

Kind = Literal["mechanism", "decoding", "encoder", "language model"]
Passes = Literal["forward", "forward and backward", "step", "training step"]
PASSES: Mapping[Kind, tuple[Passes, ...]] = {
    "mechanism": ("forward", "forward and backward"),
    "decoding": ("step",),
    "encoder": ("training step",),
    "language model": ("training step",),
}


@dataclass(frozen=True, kw_only=True)
class Target:
    passes: Passes
    length: int
    rival: str
    ratio: float


@dataclass(frozen=True, kw_only=True)
class Work:
    """One kind of work by one mechanism, and what is asked of it.

    backends: of ours, each of which takes part by its name.
    padded: whether sequences end at different tokens.
    rivals: who takes part beside the fused softmax.
    """

    name: str
    title: str
    attention: str
    options: Mapping[str, Any] = field(default_factory=dict)
    causal: bool = False
    kind: Kind = "mechanism"
    backends: tuple[str, ...] = (OURS,)
    padded: bool = False
    rivals: tuple[str, ...] = ()
    targets: tuple[Target, ...] = ()


def against(rival: str, ratios: Mapping[int, float], kind: Kind = "mechanism") -> tuple[Target, ...]:
    """Targets by length, the same for all passes of that kind of work."""
    return tuple(
        Target(passes=passes, length=length, rival=rival, ratio=ratio)
        for length, ratio in ratios.items()
        for passes in PASSES[kind]
    )


def twice(rival: str, ratios: Mapping[int, tuple[float, float]]) -> tuple[Target, ...]:
    """Targets by length: forward, and forward and backward."""
    return tuple(
        Target(passes=passes, length=length, rival=rival, ratio=ratio)
        for length, both in ratios.items()
        for passes, ratio in zip(PASSES["mechanism"], both, strict=True)
    )


def window(name: str, title: str, attention: str = "local", **settings: Any) -> Work:
    flex = against(FLEX, {32768: WITHIN})
    settings["targets"] = (*flex, *settings.get("targets", ()))
    rivals = (FLEX, *settings.pop("rivals", ()))
    return Work(
        name=name, title=title, attention=attention, backends=("flex", "parallel"), rivals=rivals, **settings
    )


def decoding(attention: str, title: str, backends: tuple[str, ...], **settings: Any) -> Work:
    return Work(
        name=f"decoding-{attention}",
        title=f"decoding, one step in a graph, {title}",
        attention=attention,
        causal=True,
        kind="decoding",
        backends=backends,
        targets=against(FUSED, {32768: 5}, "decoding"),
        **settings,
    )


def training(kind: Kind, attention: str, backends: tuple[str, ...], **settings: Any) -> Work:
    encoder = kind == "encoder"
    return Work(
        name=f"{kind.replace(' ', '-')}-{attention}",
        title=f"{kind} 6 × 512, training step, {attention}",
        attention=attention,
        causal=not encoder,
        kind=kind,
        backends=backends,
        padded=encoder,
        targets=against(FUSED, {4096: 1.2, 32768: 3}, kind) if encoder else (),
        **settings,
    )


M256: Mapping[str, Any] = MappingProxyType({"features": 256})
WINDOW: Mapping[str, Any] = MappingProxyType({"width": 256})
KERNELS, RECURRENT, PATTERN = ("triton", "parallel"), ("triton", "fla", "parallel"), ("flex", "parallel")
TWENTY = against(FUSED, {32768: 20})
SLOPES = against(FUSED, {4096: 2, 32768: 15})

WORKS: tuple[Work, ...] = (
    Work(
        name="linear-causal",
        title="causal linear",
        attention="linear",
        causal=True,
        backends=KERNELS,
        rivals=(FLA,),
        targets=(
            *twice(FUSED, {4096: (4, 4), 32768: (25, 25)}),
            *against(FLA, {4096: 3, 32768: 1.5}),
        ),
    ),
    Work(
        name="favor",
        title="FAVOR+ m = 256",
        attention="performer",
        options=M256,
        backends=KERNELS,
        rivals=(PERFORMER, COMPILED),
        targets=(
            *twice(FUSED, {4096: (3, 3), 32768: (25, 25)}),
            *against(COMPILED, {4096: 5, 32768: 5}),
        ),
    ),
    Work(
        name="favor-causal",
        title="causal FAVOR+ m = 256",
        attention="performer",
        options=M256,
        causal=True,
        backends=KERNELS,
        rivals=(PERFORMER,),
        targets=(*twice(FUSED, {4096: (1.5, 1.5), 32768: (8, 8)}), *against(PERFORMER, {4096: 50})),
    ),
    Work(
        name="linear",
        title="linear",
        attention="linear",
        backends=KERNELS,
        targets=twice(FUSED, {4096: (4, 4), 32768: (40, 30)}),
    ),
    window("window-padded", "window 256, padded", options=WINDOW, padded=True),
    Work(
        name="gated-linear",
        title="GLA",
        attention="gated-linear",
        causal=True,
        backends=RECURRENT,
        rivals=(FLA,),
        targets=(*against(FUSED, {4096: 3, 32768: 20}), *against(FLA, {4096: 1, 32768: 1})),
    ),
    Work(
        name="gated-delta",
        title="gated delta rule",
        attention="gated-delta",
        causal=True,
        backends=RECURRENT,
        rivals=(FLA,),
        targets=(*against(FUSED, {4096: 1.3, 32768: 7}), *against(FLA, {4096: 1, 32768: 1})),
    ),
    Work(
        name="retention",
        title="retention",
        attention="retention",
        causal=True,
        backends=RECURRENT,
        rivals=(FLA,),
        targets=(
            *twice(FUSED, {4096: (4, 4), 32768: (25, 25)}),
            *against(FLA, {4096: 3, 32768: 1.5}),
        ),
    ),
    decoding("linear", "linear", KERNELS),
    decoding("performer", "FAVOR+ m = 256", KERNELS, options=M256),
    training("encoder", "linear", KERNELS),
    training("encoder", "performer", KERNELS, options=M256),
    training("language model", "linear", KERNELS),
    window("window", "window 256", options=WINDOW, targets=TWENTY),
    window(
        "window-causal",
        "causal window 256",
        options=WINDOW,
        causal=True,
        rivals=(LOCAL,),
        targets=(*TWENTY, *against(LOCAL, {32768: 5})),
    ),
    window("bigbird-padded", "BigBird, padded", "bigbird", padded=True),
    window("bigbird", "BigBird", "bigbird"),
    training("encoder", "local", PATTERN, options=WINDOW),
    Work(
        name="linformer",
        title="Linformer, rank 256",
        attention="linformer",
        rivals=(LINFORMER,),
        targets=SLOPES,
    ),
    Work(
        name="nystromformer",
        title="Nyströmformer, 64 landmarks",
        attention="nystromformer",
        options=MappingProxyType({"kernel": 0}),
        rivals=(NYSTROM,),
        targets=(*SLOPES, *against(NYSTROM, {4096: 1.5, 32768: 1.5})),
    ),
    decoding("gated-delta", "gated delta rule", RECURRENT),
    decoding("retention", "retention", RECURRENT),
    decoding("local", "window 256", (OURS,), options=WINDOW),
    training("language model", "gated-delta", RECURRENT),
    Work(
        name="reformer",
        title="Reformer",
        attention="reformer",
        backends=("triton", "parallel", "reference"),
        rivals=(REFORMER,),
    ),
)
