"""One sequence over several processes: each holds a contiguous part of its tokens, and computes that alone.

    shards = parallel.share(x, valid)            # in each process of a torch.distributed group
    y = encoder(x, valid, shards=shards)         # x: this rank's tokens
    loss.backward()
    parallel.sum_gradients(encoder)

gives each rank its part of what one process gives for the whole, and the gradients of the sum of all ranks'
losses, to rounding. Once a layer, ranks exchange states, which are as large whatever the length (LASP-2: Sun,
Lan et al., arXiv:2502.07563), the edges of their shards, or all keys and values; `names` lists the mechanisms
that can, and the trait `exchange` of each says what.

Every rank has to do the same in the same order: call the model, and `backward`. Inputs want gradients on all
ranks or on none. Weights are to be alike on all of them, such as those of one seed.
"""

from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch import distributed as dist
from torch.autograd.function import once_differentiable
from torch.distributed import ProcessGroup

from subquad.mechanism import Mechanism, Outputs, Valid
from subquad.nn.sharing import names, require_exchange
from subquad.shards import Shards

__all__ = ["attention", "names", "part", "share", "sum_gradients"]


def share(
    x: Float[Tensor, "b t *width"] | Int[Tensor, "b t *width"],
    valid: Bool[Tensor, "b t"] | None = None,
    *,
    group: ProcessGroup | None = None,
) -> Shards:
    """Where this rank's tokens stand in a batch of sequences that the ranks of a group share, in their order.

    Ranks may hold different numbers of tokens, but the same rows. Raises `ValueError` where they do not, and
    outside a group.

    x: this rank's tokens, of which only the first two sizes and the device count.
    valid: True at real ones; padding may stand anywhere. None: all are real.
    group: the ranks. None: all processes.
    """
    rank, _ = require_group(group)
    own = x.new_full(x.shape[:1], x.shape[1], dtype=torch.int64) if valid is None else valid.sum(1)
    sizes = torch.tensor(x.shape[:2], device=x.device)
    rows, lengths = gathered(sizes, group).T.tolist()
    if len(set(rows)) > 1:
        raise ValueError(f"ranks hold {rows} rows: give each its part of the same sequences")
    return ProcessShards(rank, gathered(own, group), lengths, group)


def attention(
    mechanism: Mechanism, *inputs: Tensor, valid: Valid | None = None, group: ProcessGroup | None = None
) -> Outputs:
    """This rank's part of what a mechanism gives for a whole sequence: `(b h t d), … -> (b h t e)`.

    Raises `ValueError` for a mechanism that cannot, naming those that can.

    inputs: the mechanism's, in its order, of this rank's tokens.
    valid, group: as `share` takes them.
    """
    require_exchange(mechanism)
    shards = share(inputs[0].transpose(1, 2), valid, group=group)
    return mechanism.sharded(*inputs, valid=valid, shards=shards)


def part(x: Tensor, *, dim: int = 1, group: ProcessGroup | None = None) -> Tensor:
    """This rank's part of a tensor that all ranks hold: contiguous, and of equal size but for the last ones.

    dim: the axis of tokens.
    """
    rank, ranks = require_group(group)
    return x.tensor_split(ranks, dim)[rank]


def sum_gradients(module: nn.Module, *, group: ProcessGroup | None = None) -> None:
    """Add up the gradients that ranks have of the same weights, in place; call it after `backward`.

    They are then those of the sum of all ranks' losses. Where each rank takes the loss of the same outputs,
    such as a model's answer per sequence, let it divide the loss by the number of ranks.
    """
    require_group(group)
    for weight in module.parameters():
        if weight.requires_grad:
            if weight.grad is None:  # of a rank without tokens, say
                weight.grad = torch.zeros_like(weight)
            dist.all_reduce(weight.grad, group=group)


def require_group(group: ProcessGroup | None) -> tuple[int, int]:
    """One's rank, and how many there are; `ValueError` outside a group."""
    if not (dist.is_available() and dist.is_initialized()):
        raise ValueError(
            "there is no group of processes: start this by `torchrun` and call "
            "torch.distributed.init_process_group first"
        )
    rank = dist.get_rank(group)
    if rank < 0:
        raise ValueError("this process is not in the group that it was given")
    return rank, dist.get_world_size(group)


class ProcessShards(Shards):
    """Shards that the processes of a `torch.distributed` group hold."""

    def __init__(
        self, rank: int, counts: Int[Tensor, "ranks b"], lengths: list[int], group: ProcessGroup | None
    ) -> None:
        super().__init__(rank, counts, lengths)
        self.group = group

    def gather(self, x: Float[Tensor, "*shape"]) -> Float[Tensor, "ranks ..."]:
        return Gather.apply(x, self.group)  # pyright: ignore[reportReturnType]

    def shift(self, x: Float[Tensor, "*shape"], by: int) -> Float[Tensor, "*shape"]:
        return Shift.apply(x, by, self.group)  # pyright: ignore[reportReturnType]


class Gather(torch.autograd.Function):
    """The tensors of all ranks, whose gradients go back to where they came from."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: ProcessGroup | None) -> Tensor:
        ctx.group = group
        return gathered(x, group)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        if dist.get_backend(ctx.group) == "nccl":
            own = grad.new_empty(grad.shape[1:])
            dist.reduce_scatter(own, list(grad.contiguous().unbind()), group=ctx.group)
            return own, None
        total = grad.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total, group=ctx.group)  # gloo has no collective that scatters sums
        return total[dist.get_rank(ctx.group)].clone(), None


class Shift(torch.autograd.Function):
    """The tensor of the rank so many before this one, whose gradient goes back there."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, by: int, group: ProcessGroup | None) -> Tensor:
        ctx.by, ctx.group = by, group
        return shifted(x, by, group)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return shifted(grad, -ctx.by, ctx.group), None, None


def gathered(x: Tensor, group: ProcessGroup | None) -> Tensor:
    """The tensors of all ranks."""
    every = x.new_empty(dist.get_world_size(group), *x.shape)
    dist.all_gather(list(every.unbind()), x.contiguous(), group=group)
    return every


def shifted(x: Tensor, by: int, group: ProcessGroup | None) -> Tensor:
    """What the rank `by` before this one holds; zeros of none."""
    rank, ranks = dist.get_rank(group), dist.get_world_size(group)
    received, sent, exchanges = torch.zeros_like(x, memory_format=torch.contiguous_format), x.contiguous(), []
    if 0 <= rank + by < ranks:
        exchanges.append(dist.P2POp(dist.isend, sent, member(rank + by, group), group))
    if 0 <= rank - by < ranks:
        exchanges.append(dist.P2POp(dist.irecv, received, member(rank - by, group), group))
    for work in dist.batch_isend_irecv(exchanges) if exchanges else ():
        work.wait()
    return received


def member(rank: int, group: ProcessGroup | None) -> int:
    """Which of all processes has that rank in the group."""
    return rank if group is None else dist.get_global_rank(group, rank)
