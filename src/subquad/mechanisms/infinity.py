"""The infinity-former: a short-term memory of tokens beside an unbounded, continuous long-term memory.

A sequence is read in segments. A token attends to the segment before its own and to its own up to itself, as
in Transformer-XL, and reads all that came earlier from a signal of N coefficients, however much that was:

    out_i = softmax attention over [segment before; own segment up to i]  +  W_o z_i
    z_i   = E[V(t)] under a Gaussian over t whose mean and variance follow from q_i and the signal K(t)

When a segment is full, the one before it leaves the short-term memory and is written into the signals. Work
is linear in length, and the state as large after a million tokens as after one. `memories/short_term.py` and
`memories/continuous.py` say how each memory works, with sections and departures of their own.

Martins, Marinho, Martins: infinity-former: Infinite Memory Transformer. ACL 2022, arXiv:2109.00301,
section 3. Defaults but `segment` are those of the authors' code for GPT-2. How it is laid out here, and where
it departs:

- The paper's signal is of hidden states, and projected when read. Ridge regression is linear in what it
  fits, so that fitting X and projecting the coefficients, (G^T X) W, is projecting X and fitting, G^T (X W):
  the signals here are of `long_k` and `long_v`, the layer's own projections for the long-term memory.
- Gradients flow through both memories within one call; the paper stops them between segments. Detach the
  state to stop them between calls.
- Segments count real tokens, each row by its own clock, and the reads of one segment decide what the next
  write keeps.
"""

import math
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.distributions import Normal
from torch.nn import functional as F

from subquad.mechanism import Dims, Mechanism, Mixed, Queries, Traits, Valid
from subquad.memories.continuous import (
    BINS,
    GRAIN,
    SMALLEST_VARIANCE,
    ContinuousMemory,
    divergence,
    histogram,
    quantiles,
)
from subquad.memories.literal import Row, relative_attention, row_by_row
from subquad.memories.segments import Segments
from subquad.memories.short_term import RelativeAttention
from subquad.ops.padding import hide
from subquad.ops.precision import no_autocast, wide
from subquad.ops.transforms import lasting

Tokens = Float[Tensor, "b h l c"]  # k, v, long_k and long_v side by side


class Memory(NamedTuple):
    """What is remembered between chunks; all zeros before the first."""

    short: Tokens  # the last full segment
    unfinished: Tokens  # the segment being filled; zeros in its free slots
    signal: Float[Tensor, "b h f m"]  # coefficients of long_k and long_v, one above the other
    reads: Int[Tensor, "b bins"]  # histogram of where the unfinished segment has read
    filled: Int[Tensor, " b"]  # tokens in the unfinished segment
    behind: Int[Tensor, " b"]  # full segments so far


class InfinityAttention(Mechanism):
    """Transformer-XL attention over two segments, plus a Gaussian read of everything before them.

    `segment`: tokens per segment. `basis`: bumps of the signal, half `narrow` wide and half `wide`, the past
    having length 1. `ridge`: lambda of the fit. `tau`: the share of the signal that a write leaves to the
    past, which is read at `samples` points, close together where it was read most if `sticky`.
    `penalty()` is `kl_weight` times the divergence of the reads from Gaussians `deviation` wide.

    A token costs O(segment + basis) and a segment O(basis (samples + segment)); fewer of `basis` and
    `samples` make it faster and the past vaguer.

    Approximates causal softmax attention with relative positions: exact for its own segment and the one
    before, by one smooth average of everything older. Where a sequence fits into two segments nothing is
    older; it then equals plain softmax attention if, besides, u, v and W_R of `short_term` are zero.

    Not for sequences of two segments, where it is Transformer-XL at a higher price, and not for recalling
    single tokens of long ago: a read averages over a stretch of the past. Not for export with a free length:
    the memory is written segment by segment, and a graph holds the segments of one length.
    """

    traits = Traits(
        name="infinity",
        paper="arXiv:2109.00301",
        family="memory",
        causal="strict",
        state="bounded",
        tiny={"segment": 5, "basis": 8, "narrow": 0.1, "wide": 0.2, "samples": 12},
    )

    def __init__(
        self,
        dims: Dims,
        *,
        causal: bool,
        segment: int = 128,
        basis: int = 512,
        narrow: float = 0.005,
        wide: float = 0.01,
        ridge: float = 0.5,
        tau: float = 0.5,
        samples: int = 512,
        sticky: bool = True,
        kl_weight: float = 1e-6,
        deviation: float = 0.05,
    ) -> None:
        super().__init__(dims, causal=causal)
        for name, size in (("segment", segment), ("samples", samples)):
            if size < 1:
                raise ValueError(f"'infinity': {name} must be at least 1, not {size!r}")
        if basis < 2 or basis % 2:
            raise ValueError(f"'infinity': basis must be even and at least 2, not {basis!r}")
        positive = {"narrow": narrow, "wide": wide, "ridge": ridge, "deviation": deviation}
        for name, value in positive.items():
            if not 0 < value < math.inf:
                raise ValueError(f"'infinity': {name} must be a positive number, not {value!r}")
        if not 0 < tau < 1:
            raise ValueError(f"'infinity': tau must lie between 0 and 1, both excluded, not {tau!r}")
        if not 0 <= kl_weight < math.inf:
            raise ValueError(f"'infinity': kl_weight must be zero or a positive number, not {kl_weight!r}")
        self.segment, self.basis, self.samples = segment, basis, samples
        self.ridge, self.tau, self.sticky = ridge, tau, sticky
        self.kl_weight, self.deviation = kl_weight, deviation
        self.short_term = RelativeAttention(dims.heads, dims.head_dim)
        self.long_term = ContinuousMemory(
            heads=dims.heads,
            segment=segment,
            basis=basis,
            narrow=narrow,
            wide=wide,
            ridge=ridge,
            tau=tau,
            samples=samples,
            deviation=deviation,
        )
        self.W_o = nn.Parameter(torch.randn(dims.heads, dims.head_dim, dims.head_dim) * dims.head_dim**-0.5)
        self._divergence = torch.zeros(())

    def projections(self) -> dict[str, int]:
        return dict.fromkeys(("q", "k", "v", "long_k", "long_v"), self.dims.head_dim)

    def definition(
        self,
        q: Queries,
        k: Queries,
        v: Queries,
        long_k: Queries,
        long_v: Queries,
        *,
        valid: Valid | None = None,
    ) -> Mixed:
        """Row by row without its padding, segment by segment, every system solved where it stands."""
        return row_by_row(self._define, q, k, v, long_k, long_v, valid=valid)

    def _define(self, q: Row, k: Row, v: Row, long_k: Row, long_v: Row) -> Row:
        """One row without padding."""
        short, long, B, outputs = self.short_term, self.long_term, None, [q[:, :0]]
        mu = torch.linspace(0, 1, self.basis // 2, dtype=q.dtype, device=q.device).repeat(2)
        s = torch.tensor(long.widths, dtype=q.dtype, device=q.device).repeat_interleave(self.basis // 2)
        for start in range(0, q.shape[1], self.segment):
            now, before = slice(start, start + self.segment), slice(max(start - self.segment, 0), start)
            both = slice(before.start, now.stop)
            reach = 2 * self.segment
            out = relative_attention(q[:, now], k[:, both], v[:, both], weights=short, reach=reach)
            X, t = torch.cat([long_k[:, before], long_v[:, before]], -1), even(self.segment, like=q)
            if B is not None:
                K, V = B.chunk(2, -1)
                scores = q[:, now] @ K.mT / q.shape[-1] ** 0.5
                m = (scores @ long.w_mu[..., None] + long.b_mu[:, None, None]).sigmoid()
                variance = F.softplus(scores @ long.w_sigma[..., None] + long.b_sigma[:, None, None])
                variance = variance.clamp(min=SMALLEST_VARIANCE)
                out = out + normal(m, mu, (variance + s**2).sqrt()) @ V @ self.W_o
                points = old = even(self.samples, like=q)
                if self.sticky:
                    points = sticky(Normal(m.detach(), variance.detach().sqrt()), old)
                X = torch.cat([normal(points[:, None], mu, s) @ B, X], 1)
                t = torch.cat([self.tau * old, self.tau + (1 - self.tau) * t])
            outputs.append(out)
            if start > 0:
                F_T = normal(t[:, None], mu, s)
                B = torch.linalg.solve(F_T.mT @ F_T + self.ridge * torch.eye(len(mu)).to(mu), F_T.mT @ X)
        return torch.cat(outputs, 1)

    def forward(
        self,
        q: Queries,
        k: Queries,
        v: Queries,
        long_k: Queries,
        long_v: Queries,
        *,
        valid: Valid | None = None,
    ) -> Mixed:
        return self._run(q, k, v, long_k, long_v, valid=valid, state=None, keep=False)[0]

    def step(
        self,
        q: Queries,
        k: Queries,
        v: Queries,
        long_k: Queries,
        long_v: Queries,
        *,
        valid: Valid | None = None,
        state: Memory | None = None,
    ) -> tuple[Mixed, Memory]:
        return self._run(q, k, v, long_k, long_v, valid=valid, state=state, keep=True)

    def penalty(self) -> Float[Tensor, ""]:
        return self.kl_weight * lasting(self._divergence)

    def _run(
        self, *inputs: Queries, valid: Valid | None, state: Memory | None, keep: bool
    ) -> tuple[Mixed, Memory]:
        """What the chunk's tokens get, and what is remembered after it; to `keep` it takes a last write."""
        q, k, *_ = inputs
        self.require_equal_lengths(q, k)
        with no_autocast(q):
            q, *rest = wide(*hide(valid, *inputs))
            memory = self._empty(q) if state is None else state
            filled = None if state is None else state.filled
            segments = Segments.place(q, size=self.segment, valid=valid, filled=filled, unrolled=True)
            if isinstance(segments.count, torch.SymInt):
                raise ValueError(
                    "'infinity' writes its memory segment by segment, and a graph holds the segments of one "
                    "length: export it with a fixed length, or run it as it is"
                )
            known = zip(rest, memory.short.chunk(4, -1), memory.unfinished.chunk(4, -1), strict=True)
            lines = [segments.line(*each) for each in known]
            queries = segments.queries(q)
            near = self.short_term(
                queries,
                *lines[:2],
                segments=segments,
                memory=self.segment,
                held=self.segment * segments.before(memory.behind, each=1).clamp(max=1),
                reach=2 * self.segment,
            )
            far, signal, reads = self._read_and_write(
                queries, lines[2:], segments, memory, new=state is None, keep=keep
            )
            out = segments.outputs(near + far).to(inputs[0].dtype)
            l, missing = self.segment, segments.missing(self.segment)
            kept = [segments.after(x, width=2 * l, stride=l, missing=missing) for x in lines]
            short, unfinished = torch.cat(kept, -1).chunk(2, 2)
            behind = memory.behind + segments.done()
            return out, Memory(short, unfinished, signal, reads, segments.filled(), behind)

    def _empty(self, q: Queries) -> Memory:
        """What is remembered before the first token."""
        b, h, _, d = q.shape
        segment = q.new_zeros(b, h, self.segment, 4 * d)
        count = torch.zeros(b, dtype=torch.int64, device=q.device)
        signal, reads = q.new_zeros(b, h, 2 * d, self.basis), count.new_zeros(b, BINS)
        return Memory(segment, segment, signal, reads, count, count)

    def _read_and_write(
        self,
        queries: Queries,
        lines: list[Float[Tensor, "b h s d"]],
        segments: Segments,
        memory: Memory,
        *,
        new: bool,
        keep: bool,
    ) -> tuple[Queries, Float[Tensor, "b h f m"], Int[Tensor, "b bins"]]:
        """The long-term memory, segment by segment: queries read it; a full one has the one before written.

        Where all rows are `new`, what cannot have been written yet is not read.
        """
        signal, reads, long = memory.signal, memory.reads, self.long_term
        l, w, real = self.segment, segments.width, segments.real()
        total, count, outputs = queries.new_zeros(()), queries.new_zeros(()), []
        for n in range(segments.count):
            written = memory.behind + n > 1
            own = queries[:, :, n * w : (n + 1) * w]
            if new and n < 2:
                outputs.append(torch.zeros_like(own))
            else:
                K_T, V_T = signal.chunk(2, 2)
                where = long.locate(own, K_T)
                outputs.append(long.read(where, V_T) @ self.W_o.to(V_T.dtype))
                readers = real[:, n, : own.shape[2]] & written[:, None]
                total = total + divergence(where.variance, deviation=self.deviation, real=readers)
                count = count + readers.sum() * self.dims.heads
                if self.sticky and (keep or n + 1 < segments.count):
                    reads = reads + histogram(where, real=readers)
            if (n > 0 or not new) and (keep or n + 1 < segments.count):
                before = n * l - segments.missing(l)
                X = torch.cat([x[:, :, before : before + l] for x in lines], -1)
                fitted = long.first(X)
                if n > 1 or not new:
                    later = long.later(signal, quantiles(reads, self.samples, like=X), X)
                    fitted = torch.where(written[:, None, None, None], later, fitted)
                full = segments.full(n)
                leaves = full & (memory.behind + n > 0)
                signal = torch.where(leaves[:, None, None, None], fitted, signal)
                reads = reads.masked_fill(full[:, None], 0)
        self._divergence = total / count.clamp(min=1)
        return torch.cat(outputs, 2), signal, reads

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_divergence": torch.zeros(())}  # its graph cannot be copied


def sticky(reads: Normal, level: Float[Tensor, " m"]) -> Float[Tensor, " m"]:
    """The points of [0, 1] with the shares `level` of all reads, as a histogram, below them."""
    edges = torch.linspace(0, 1, BINS + 1, dtype=level.dtype, device=level.device)
    mass = (reads.cdf(edges[1:]) - reads.cdf(edges[:-1])).sum((0, 1))
    end = (GRAIN * mass.cumsum(0) / mass.sum()).round() / GRAIN
    bin = (end <= level[:, None]).sum(1)
    mass = end.diff(prepend=torch.zeros_like(end[:1]))
    return (bin + 1 - (end - level[:, None]).gather(1, bin[:, None])[:, 0] / mass[bin]) / BINS


def normal(t: Tensor, mean: Tensor, deviation: Tensor) -> Tensor:
    return Normal(mean, deviation).log_prob(t).exp()


def even(count: int, *, like: Tensor) -> Float[Tensor, " {count}"]:
    return torch.arange(0.5, count, dtype=like.dtype, device=like.device) / count
