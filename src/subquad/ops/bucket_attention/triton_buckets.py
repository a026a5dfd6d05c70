"""Buckets by Triton kernels: a launch a round forward, and two a round backward, whatever the length.

Rounds go one after another, since each adds to the rows of tokens that the next one reads in another order:
the same inputs give the same bits, and there is no memory of each round's own.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from subquad.ops.bucket_attention import BucketCall, BucketResult, Visibility
from subquad.ops.bucket_attention import triton_bucket_kernels as kernels
from subquad.ops.triton.configs import Config, Configs, Family
from subquad.ops.triton.launch import Kernel, ceil_div, launch, side_by_side, tokens
from subquad.ops.triton.products import block, products_of


def forward(call: BucketCall) -> BucketResult:
    launches = BucketLaunches(call)
    out, lse = launches.new(call.v), launches.new(call.v[..., 0])
    for round in range(launches.rounds):
        launches.run(kernels.add_outputs, "M", round, tokens(out), lse)
    return BucketResult(out.to(call.v.dtype), lse)


def backward(grad: Tensor, call: BucketCall, result: BucketResult) -> tuple[Tensor, Tensor, Tensor]:
    launches, lse, w = BucketLaunches(call), result.lse, torch.empty_like(result.lse)
    out, g = tokens(result.out), tokens(side_by_side(grad))
    dq, dk, dv = (launches.new(x) for x in call[:3])
    for round in range(launches.rounds):
        launches.run(kernels.add_query_gradients, "M", round, out, g, lse, w, tokens(dq))
        launches.run(kernels.add_key_gradients, "N", round, g, lse, w, tokens(dk), tokens(dv))
    dq, dk, dv = (x.to(call.q.dtype) for x in (dq, dk, dv))
    return dq, dk, dv


class BucketLaunches:
    """What the launches of a call have in common."""

    def __init__(self, call: BucketCall) -> None:
        q, k, v = map(side_by_side, call[:3])
        self.batch, self.heads, self.n, d = q.shape
        self.rounds, e = call.order.shape[2], v.shape[3]
        self.widest, self.scale = max(q, v, key=lambda x: x.shape[3]), d**-0.5
        self.all = tokens(q), tokens(k), tokens(v), call.order.contiguous(), call.labels.contiguous()
        self.size, causal, last_n_only, self_only_if_alone, count_duplicates = call.visibility
        self.constants = {"CAUSAL": causal, "LAST": last_n_only, "ALONE_ONLY": self_only_if_alone}
        self.constants |= {"ONCE": not count_duplicates and self.rounds > 1}
        low, precision, _ = products_of(v.dtype)
        self.constants |= {"D": d, "E": e, "BD": block(d), "BE": block(e), "LOW": low, "PRECISION": precision}

    def new(self, like: Tensor) -> Tensor:
        return torch.empty(like.shape, dtype=torch.float32, device=like.device)

    def run(self, kernel: Kernel, by: str, round: int, *more: Any) -> None:
        """A program for each tile of places, of queries ("M") or of keys ("N")."""
        config = CONFIGS.find(kernel, self.widest)
        launch(
            kernel,
            (ceil_div(self.n, config.blocks[by]), self.batch * self.heads),
            *(*self.all, *more, self.scale, self.n, self.heads, self.rounds, round, self.size),
            config=config,
            **self.constants,
        )


def candidates(kernel: str, dtype: torch.dtype, width: int, architecture: int) -> Iterator[Config]:
    """A tile of 64 queries meets two of 64 keys where buckets have as many tokens; in TF32 it is smaller."""
    most = 64 * 64 if dtype == torch.bfloat16 else 64 * 32 if width < 128 else 32 * 32
    for rows, columns in ((64, 64), (64, 32), (32, 64), (32, 32), (32, 16), (16, 32), (16, 16)):
        if rows * columns <= most:
            M, N = (columns, rows) if kernel == "add_key_gradients" else (rows, columns)
            for warps, stages in ((4, 2), (8, 2), (4, 1), (8, 1)):
                yield Config({"M": M, "N": N}, warps, stages)


def calls(dtype: torch.dtype, width: int) -> Iterator[Callable[[], Any]]:
    """Forward and back, of Reformer's form and of Routing's."""
    x = torch.empty(2, 4, 512, width, dtype=dtype, device="meta")
    for rounds, visibility in (
        (8, Visibility(64, True, False, True, False)),
        (1, Visibility(256, False, True, False, False)),
    ):
        order = torch.empty(2, 4, rounds, 512, dtype=torch.int64, device="meta")
        call = BucketCall(x, x, x, order, order.to(torch.int32), visibility)
        yield lambda call=call: backward(call.v, call, forward(call))


CONFIGS = Configs(Path(__file__).with_suffix(".json"), candidates)
FAMILY = Family(CONFIGS, calls)
