"""How `triton_decay_kernels.py` and `triton_channel_kernels.py` are launched."""

from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from subquad.ops.recurrence.decay import Matrix, Values
from subquad.ops.recurrence.rows import RecurrenceInputs
from subquad.ops.recurrence.triton_channel_kernels import read_channels
from subquad.ops.recurrence.triton_decay_kernels import recall, scan, write
from subquad.ops.triton.configs import Config, Configs
from subquad.ops.triton.launch import Kernel, launch, tokens
from subquad.ops.triton.products import block, products_of

UNIT = 64  # tokens: a program's block is a multiple of it, and every chunk a part
MOST_UNITS = 16
SCAN = Config({"BLOCK": 256}, warps=2, stages=2)
PROGRAMS = 8 * 132  # some for each multiprocessor of a large card


class Launches(NamedTuple):
    """What all launches of a call have in common, from shapes alone: results do not depend on the card."""

    configs: Configs
    like: Tensor  # the widest of the tokens
    log_decay: Tensor  # of all tokens of all heads
    kind: str  # of decays, as in `fading.py`
    size: int  # tokens of a block
    blocks: int

    @classmethod
    def of(cls, configs: Configs, inputs: RecurrenceInputs, *, by_channel: bool) -> "Launches":
        q, _, v, log_decay, _ = inputs
        batch, heads, n, D = q.shape
        log_decay = log_decay.expand(batch, heads, n, D if by_channel else 1)
        kind = "channel" if by_channel else "uniform" if log_decay.stride(2) == 0 else "head"
        units = -(-n // UNIT)
        size = min(MOST_UNITS, max(1, units * batch * heads // PROGRAMS))
        like = max(q, v, key=lambda x: x.shape[3])
        return cls(configs, like, log_decay, kind, size * UNIT, -(-units // size))

    def forward(self, inputs: RecurrenceInputs, state: Matrix, dtype: torch.dtype) -> tuple[Values, Matrix]:
        """Outputs in that dtype, and the last state."""
        q, k, v, *_ = inputs
        states, last = self.states(k, v, state, backwards=False)
        return self.read(q, k, v, states, dtype, turned=False, backwards=False), last

    def states(self, x: Tensor, y: Tensor, first: Matrix, *, backwards: bool) -> tuple[Tensor, Matrix]:
        """The state before each block, and after all.

        Backwards, the gradient of the state after each block, and before all.
        """
        (batch, heads, n, D), E = x.shape, y.shape[3]
        states = first.new_empty(batch * heads, self.blocks, D, E)
        left, last = first.new_empty(batch * heads, self.blocks, D), first.new_empty(first.shape)
        config, BE = self.config(write, "BE", E)
        launch(
            write,
            (self.blocks, batch * heads, triton.cdiv(E, BE)),
            *(tokens(x), tokens(y), self.decays, states, left),
            *(n, heads, self.size // config.blocks["C"]),
            config=config,
            **self.constants(D=D, E=E, BD=block(D), BE=BE, KIND=self.kind, REVERSE=backwards),
        )
        config = self.configs.find(scan, self.like)
        launch(
            scan,
            (triton.cdiv(D * E, config.blocks["BLOCK"]), batch * heads),
            *(states, left, first.contiguous(), last, self.blocks),
            config=config,
            D=D,
            E=E,
            REVERSE=backwards,
        )
        return states, last

    def read(
        self,
        x: Tensor,
        y: Tensor,
        z: Tensor,
        states: Tensor,
        dtype: torch.dtype,
        *,
        turned: bool,
        backwards: bool,
    ) -> Tensor:
        """What x reads; turned, the states are those of z and y, and not of y and z."""
        (batch, heads, n, X), Z = x.shape, z.shape[3]
        config, BZ = self.config(recall, "BZ", Z)
        C, out = config.blocks["C"], z.new_empty(batch, heads, n, Z, dtype=dtype)
        launch(
            recall,
            (self.blocks, batch * heads, triton.cdiv(Z, BZ)),
            *(tokens(x), tokens(y), tokens(z), self.decays),
            *((states, 1, X) if turned else (states, Z, 1), tokens(out)),
            *(n, heads, self.size // C),
            config=config,
            **self.constants(X=X, Z=Z, BX=block(X), BZ=BZ, LEVELS=C.bit_length() - 1),
            KIND=self.kind,
            REVERSE=backwards,
        )
        return out

    def read_channels(
        self,
        grad: Tensor,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        states: Tensor,
        gradients: Tensor,
        dtype: torch.dtype,
        *,
        learnt: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """dq, dk, and the flow through decays, if these are learnt: otherwise no numbers of its shape."""
        (batch, heads, n, D), E = q.shape, v.shape[3]
        config, BD = self.config(read_channels, "BD", D)
        C = config.blocks["C"]
        chunks = self.size // C
        dq, dk = (q.new_empty(q.shape, dtype=dtype) for _ in range(2))
        flow, met = states.new_zeros(1).expand(q.shape), states
        if learnt:
            flow = states.new_empty(q.shape)
            met = states.new_empty(batch * heads, self.blocks * chunks, D, E, dtype=self.saved)
        for backwards, x, y, z, own, before, out in (
            (True, v, grad, q, k, gradients, dk),
            (False, grad, v, k, q, states, dq),
        ):
            launch(
                read_channels,
                (self.blocks, batch * heads, triton.cdiv(D, BD)),
                *(tokens(x), tokens(y), tokens(z), tokens(own), self.decays, before, met),
                *(tokens(out), tokens(flow if learnt else out), n, heads, chunks),
                config=config,
                **self.constants(D=D, E=E, BD=BD, BE=block(E), LEVELS=C.bit_length() - 1),
                LEARNT=learnt,
                REVERSE=backwards,
            )
        return dq, dk, flow

    def config(self, kernel: Kernel, part: str, size: int) -> tuple[Config, int]:
        """That of a kernel, and how many of `size` numbers a program takes that shares them with others."""
        config = self.configs.find(kernel, self.like)
        return config, min(config.blocks[part], block(size))

    def constants(self, **sizes: Any) -> dict[str, Any]:
        low, precision, _ = products_of(self.like.dtype)
        return {**sizes, "LOW": low, "PRECISION": precision}

    @property
    def decays(self) -> tuple[Tensor, int, int, int, int]:
        b, h, t, d = self.log_decay.stride()
        return self.log_decay, b, h, t, d

    @property
    def saved(self) -> torch.dtype:
        return products_of(self.like.dtype).saved


def inputs(
    dtype: torch.dtype, width: int, *, channels: int, shared: bool = False, n: int = 512
) -> tuple[RecurrenceInputs, Matrix]:
    """Tokens and a state without memory, for launches that are recorded.

    `shared`: one decay for all tokens.
    """
    batch, heads = 2, 4
    q, k, v = (
        torch.empty(batch, n, heads, width, dtype=dtype, device="meta").transpose(1, 2) for _ in range(3)
    )
    log_decay = torch.empty(batch, heads, 1 if shared else n, channels, device="meta")
    state = torch.empty(batch, heads, width, width, device="meta")
    return RecurrenceInputs(q, k, v, log_decay.expand(batch, heads, n, channels), None), state
