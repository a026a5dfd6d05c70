"""A call of linear attention as its Triton kernels take it, and how they are launched."""

from typing import Any

import torch
from torch import Tensor

from subquad.ops.linear_attention import FeatureKind, LinearCall
from subquad.ops.triton.configs import Configs
from subquad.ops.triton.launch import Kernel, ceil_div, launch, power_of_two, side_by_side, tokens
from subquad.ops.triton.products import block, products_of

SEGMENT = 256  # tokens that have a state of their own, where attention is causal
PARTS = 64  # at most, of sums over all tokens


class Inputs:
    """What the kernels of a call have in common: tokens, sizes, constants and the table of their family."""

    def __init__(self, call: LinearCall, configs: Configs) -> None:
        q, k, v = map(side_by_side, call[:3])
        (self.b, self.h, self.queries, d), self.keys, self.e = q.shape, k.shape[2], v.shape[3]
        self.v, self.configs, self.causal, self.features = v, configs, call.causal, call.features
        self.masked = call.valid is not None
        valid = v if call.valid is None else call.valid.contiguous().view(torch.uint8)
        self.all = tokens(q), tokens(k), tokens(v), valid
        low, precision, _ = products_of(v.dtype)
        self.constants = {"CAUSAL": self.causal, "E": self.e, "LOW": low, "PRECISION": precision}
        self.constants |= {"ELU": call.kind == FeatureKind.ELU, "FAVOR": call.kind == FeatureKind.FAVOR}
        self.constants |= {"D": d, "BD": block(d), "INITIAL": call.before is not None}

    def new(self, *shape: int) -> Tensor:
        return self.v.new_empty(shape, dtype=torch.float32)

    def segment(self, n: int) -> int:
        """How many of `n` tokens have sums of their own."""
        return SEGMENT if self.causal else max(SEGMENT, power_of_two(ceil_div(n, PARTS)))

    def segments(self, n: int) -> int:
        return ceil_div(n, self.segment(n))

    def run(self, kernel: Kernel, *inputs: Any, n: int, by: str = "C", split: str | None = None) -> None:
        """For `n` tokens, the queries or the keys: a program for each tile of them, or by "segment", and for
        each of the blocks into which features ("BF") or values ("BE") are split.
        """
        config = self.configs.find(kernel, self.v).within(BF=block(self.features), BE=block(self.e))
        sizes = config.blocks | {"segment": self.segment(n)}
        across = {None: 1, "BF": self.features, "BE": self.e}[split]
        grid = ceil_div(n, sizes[by]), self.b * self.h, ceil_div(across, sizes.get(str(split), 1))
        launch(
            kernel,
            grid,
            *(*inputs, n, self.h, self.features, sizes["segment"]),
            config=config,
            ONE=self.features <= sizes["BF"],
            MASK=self.masked and n == self.keys,  # else the mask is of other tokens
            **self.constants,
        )


def directions(call: LinearCall) -> tuple[Tensor, float]:
    """W, and half of 1 / sqrt(d); kernels that are given logarithms have no use for them."""
    if call.W is None:
        return call.v, 0.0
    return call.W.float().contiguous(), 0.5 * call.q.shape[-1] ** -0.5
