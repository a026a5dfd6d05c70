"""What the infinity-formers share: segments, relative attention to two of them, and a read of all before.

    out_i = softmax attention over [segment before; own segment up to i]  +  W_o z_i
    z_i   = E[V(t)] under a density over t whose location and scale follow from q_i and the signal K(t)

A member says what of a token is remembered, and how keys and values follow from the signal of that.
"""

from abc import abstractmethod
from collections.abc import Sequence
from typing import Annotated, Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from subquad.bounds import Count, EvenCount, OpenShare, Positive, PositiveOrZero, one_of
from subquad.mechanism import Dims, Mechanism, Outputs, Queries, State, Valid
from subquad.memories import literal
from subquad.memories.continuous import ContinuousMemory, Signal
from subquad.memories.literal import Row, even, normal, relative_attention, row_by_row, seen, sticky
from subquad.memories.reads import BINS, DENSITIES, Density, Sticky, divergence
from subquad.memories.segments import Segments, as_batch, between, by_segment
from subquad.memories.short_term import RelativeAttention
from subquad.ops.shared.parallel import groups, turns
from subquad.ops.shared.precision import wide
from subquad.ops.shared.transforms import lasting
from subquad.ops.shared.unused import unused

IN_CACHE = 2**18  # numbers of signals and reads that a CPU takes at once, at least a segment's

DensityName = Annotated[str, one_of(*DENSITIES)]
SegmentInputs = Float[Tensor, "b h l c"]  # k, v and what is remembered in the long term, side by side
Segment = Float[Tensor, "b h l _"]
RowSegment = Float[Tensor, "h l _"]
Coefficients = Float[Tensor, "b h _ n"]  # of bumps, or what is made of these


class UnboundedState(NamedTuple):
    """What is remembered between chunks; all zeros before the first."""

    short: SegmentInputs  # the last full segment
    unfinished: SegmentInputs  # the segment being filled; zeros in its free slots
    signal: Float[Tensor, "b h f m"]  # coefficients, as many as what is remembered of a token is wide
    reads: Int[Tensor, "b bins"]  # histogram of where the unfinished segment has read
    filled: Int[Tensor, " b"]  # tokens in the unfinished segment
    full_segments: Int[Tensor, " b"]  # how many so far


class UnboundedAttention(Mechanism):
    """Owns segments, both memories, streams and the penalty; a member writes what is abstract here."""

    def __init__(
        self,
        dims: Dims,
        *,
        causal: bool,
        segment: Count = 128,
        basis: EvenCount = 512,
        narrow: Positive = 0.005,
        wide: Positive = 0.01,
        ridge: Positive = 0.5,
        tau: OpenShare = 0.5,
        samples: Count = 512,
        sticky: bool = True,
        kl_weight: PositiveOrZero = 1e-6,
        deviation: Positive = 0.05,
        smallest_variance: Positive = 1e-6,
        density: DensityName = "gaussian",
        shared: bool = False,
        across_heads: bool = False,
        detach: bool = False,
    ) -> None:
        super().__init__(dims, causal=causal)
        self.segment, self.basis, self.samples = segment, basis, samples
        self.ridge, self.tau, self.sticky = ridge, tau, sticky
        self.kl_weight, self.deviation, self.density = kl_weight, deviation, density
        self.across_heads, self.detach = across_heads, detach
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
            smallest_variance=smallest_variance,
            shared=shared,
            density=density,
        )
        h, d = dims.heads, dims.head_dim
        W_o = torch.randn(h * d, h * d) * (h * d) ** -0.5 if across_heads else torch.randn(h, d, d) * d**-0.5
        self.W_o = nn.Parameter(W_o)
        self._divergence = torch.zeros((), device="cpu")

    @abstractmethod
    def _remembered(self, *tokens: Segment) -> Segment:
        """What the signal is fitted to, of a full segment's tokens: the inputs behind v."""

    @abstractmethod
    def _keys(self, signal: Coefficients) -> Coefficients:
        """K^T, from the coefficients of what is remembered; channels alone are mixed, and not bumps."""

    @abstractmethod
    def _values(self, signal: Coefficients) -> Coefficients:
        """V^T, likewise."""

    @abstractmethod
    def _define_remembered(self, *tokens: RowSegment) -> RowSegment:
        """`_remembered` for one row, literally."""

    @abstractmethod
    def _define_keys_and_values(self, B: Float[Tensor, "h n f"]) -> tuple[Row, Row]:
        """`_keys` and `_values` for one row, literally."""

    def detached_inputs(self) -> tuple[str, ...]:
        return tuple(self.projections())[3:] if self.detach else ()

    def penalty(self) -> Float[Tensor, ""]:
        return self.kl_weight * lasting(self._divergence)

    def definition(self, *inputs: Tensor, valid: Valid | None = None) -> Outputs:
        """Row by row without its padding, segment by segment, every system solved where it stands."""
        return row_by_row(self._define, *inputs, valid=valid)

    def _define(self, q: Row, k: Row, v: Row, *memory: Row) -> Row:
        """One row without padding."""
        short, long, B, outputs = self.short_term, self.long_term, None, [q[:, :0]]
        mu = torch.linspace(0, 1, self.basis // 2, dtype=q.dtype, device=q.device).repeat(2)
        s = torch.tensor(long.widths, dtype=q.dtype, device=q.device).repeat_interleave(self.basis // 2)
        W_o = self.W_o if self.across_heads else torch.block_diag(*self.W_o)
        for start in range(0, q.shape[1], self.segment):
            now, before = slice(start, start + self.segment), slice(max(start - self.segment, 0), start)
            l, stop = self.segment, self.detach
            near = (seen(x, start, memory=l, segment=l, detach=stop) for x in (k, v))
            out = relative_attention(q[:, now], *near, weights=short, reach=2 * l)
            X, t = self._define_remembered(*(x[:, before] for x in memory)), even(self.segment, like=q)
            if B is not None:
                K, V = self._define_keys_and_values(B)
                scores = q[:, now] @ K.mT / q.shape[-1] ** 0.5
                m, variance = scores @ long.w_mu[..., None], scores @ long.w_sigma[..., None]
                if long.b_mu is not None and long.b_sigma is not None:
                    m, variance = m + long.b_mu[:, None, None], variance + long.b_sigma[:, None, None]
                variance = F.softplus(variance).clamp(min=long.smallest_variance)
                reads = literal.Density(self.density, m.sigmoid(), variance)
                z = (reads.expectation(mu, s) @ V).transpose(0, 1).flatten(1) @ W_o
                out = out + z.unflatten(1, (len(V), -1)).transpose(0, 1)
                points = old = even(self.samples, like=q)
                if self.sticky:
                    points = sticky(reads, old)
                past = B.detach() if stop else B
                X = torch.cat([normal(points[:, None], mu, s) @ past, X], 1)
                t = torch.cat([self.tau * old, self.tau + (1 - self.tau) * t])
            outputs.append(out)
            if start > 0:
                F_T = normal(t[:, None], mu, s)
                B = torch.linalg.solve(F_T.mT @ F_T + self.ridge * torch.eye(len(mu)).to(mu), F_T.mT @ X)
        return torch.cat(outputs, 1)

    def forward(self, *inputs: Tensor, valid: Valid | None = None) -> Outputs:
        return self._run(*inputs, valid=valid, state=None, write_last=False)[0]

    def step(
        self, *inputs: Tensor, valid: Valid | None = None, state: State | None = None
    ) -> tuple[Outputs, State]:
        return self._run(*inputs, valid=valid, state=state, write_last=True)

    def _run(
        self, *inputs: Tensor, valid: Valid | None, state: UnboundedState | None, write_last: bool
    ) -> tuple[Outputs, UnboundedState]:
        """The outputs of the chunk's tokens, and the state after it.

        Only a further chunk can read what the last full segment writes: `write_last` is for a stream.
        """
        q, *rest = wide(*inputs)
        memory = self._initial_state(q) if state is None else state
        filled = None if state is None else state.filled
        segments = Segments.place(q, size=self.segment, valid=valid, filled=filled, unrolled=True)
        if isinstance(segments.count, torch.SymInt):
            raise ValueError(
                f"{self.traits.name!r} writes its memory segment by segment, and a graph holds the "
                "segments of one length: export it with a fixed length, or run it as it is"
            )
        past = (x.chunk(len(rest), -1) for x in (memory.short, memory.unfinished))
        slots = [segments.slots(*parts) for parts in zip(rest, *past, strict=True)]
        queries = segments.queries(q)
        short_outputs = self.short_term(
            queries,
            *slots[:2],
            segments=segments,
            memory=self.segment,
            num_held=self.segment * segments.preceding(memory.full_segments, per_segment=1).clamp(max=1),
            reach=2 * self.segment,
            detach=self.detach,
        )
        long_outputs, signal, reads = self._read_and_write(
            queries, slots[2:], segments, memory, new=state is None, write_last=write_last
        )
        out = segments.outputs(short_outputs + long_outputs)
        l, missing = self.segment, segments.missing(self.segment)
        carried = [segments.carry(x, width=2 * l, stride=l, missing=missing) for x in slots]
        short, unfinished = torch.cat(carried, -1).chunk(2, 2)
        full_segments = memory.full_segments + segments.num_full()
        return out, UnboundedState(short, unfinished, signal, reads, segments.filled(), full_segments)

    def _initial_state(self, q: Queries) -> UnboundedState:
        """What is remembered before the first token."""
        b, h, _, d = q.shape
        remembered = (len(self.inputs.__annotations__) - 3) * d  # width of a token's
        segment = q.new_zeros(b, h, self.segment, 2 * d + remembered)
        count = torch.zeros(b, dtype=torch.int64, device=q.device)
        signal, reads = q.new_zeros(b, h, remembered, self.basis), count.new_zeros(b, BINS)
        return UnboundedState(segment, segment, signal, reads, count, count)

    def _read_and_write(
        self,
        queries: Queries,
        slots: list[Float[Tensor, "b h s d"]],
        segments: Segments,
        memory: UnboundedState,
        *,
        new: bool,
        write_last: bool,
    ) -> tuple[Queries, Signal, Int[Tensor, "b bins"]]:
        """The long-term memory: a segment's queries read it, and when it is full the one before is written.

        As many segments as memory allows write, and then all of them read side by side. A row that has
        fewer has no queries in the others. Where all rows are `new`, nothing is written before the second
        segment is full, nor read before the third.
        """
        before = segments.preceding(memory.full_segments, per_segment=1)
        readers = segments.real() & (before > 1)[..., None]
        parts = self._parts(queries, segments.count, new=new)
        first, stop = int(new), segments.count - (not write_last)  # of the segments that write
        writes = [slice(max(x.start, first), max(x.start, first, min(x.stop, stop))) for x in parts]
        places = [writes[0].start, *(x.stop for x in writes)]
        slots_at = [self.segment * n - segments.missing(self.segment) for n in places]
        tokens = zip(*(between(x, slots_at) for x in slots), strict=True)
        by_part = between(queries, [0, *(segments.width * x.stop for x in parts)])
        signal, reads = memory.signal, F.pad(memory.reads.cumsum(1), (1, 0))
        total, count, outputs = queries.new_zeros(()), queries.new_zeros(()), []
        full = segments.whole and not (write_last and segments.length % self.segment)  # that write
        for part, written, q, X in zip(parts, writes, by_part, tokens, strict=True):
            added = self._added(X, first=before[:, written] == 1)
            if part.stop <= 2 * new:
                nothing = unused(*slots, *self.parameters())
                outputs.append(nothing.to(q.dtype).expand_as(q))
                signals, masses = [signal, *added], [reads] * len(added)
            else:
                each = by_segment(q, count=part.stop - part.start, width=min(segments.width, q.shape[2]))
                real = readers[:, part, : each.shape[3]]
                signals, masses = self._write(signal, reads, each, None if full else real, added)
                where, read = self._read(side_by_side(signals[: each.shape[2]]), each)
                outputs.append(read.flatten(2, 3)[:, :, : q.shape[2]])
                total = total + divergence(where.variance, deviation=self.deviation, real=real.flatten(0, 1))
                count = count + real.sum() * self.dims.heads
            signal = signals[-1]
            if write_last:
                at = (segments.num_full() - written.start).clamp(0, len(added))
                signal, reads = of_each_row(signals, at), of_each_row([*masses, torch.zeros_like(reads)], at)
        self._divergence = total / count.clamp(min=1)
        return torch.cat(outputs, 2), signal, reads.diff(dim=1)

    def _parts(self, queries: Queries, count: int, *, new: bool) -> list[slice]:
        """The segments that are taken at once, those that cannot read yet by themselves."""
        (b, h, _, d), first = queries.shape, min(2, count) * new
        channels = (len(self.inputs.__annotations__) - 3) * d
        numbers, rest = b * h * self.basis * (channels + self.segment), count - first
        some = groups(rest, numbers, most=IN_CACHE) if queries.is_cpu else turns(rest, numbers)
        return [slice(0, first)] * new + [slice(first + x.start, first + x.stop) for x in some]

    def _added(self, tokens: Sequence[Segment], *, first: Bool[Tensor, "b s"]) -> list[Signal]:
        """What each of so many segments, which follow one another, adds to the signal."""
        count = first.shape[1]
        if count == 0:
            return []
        each = (as_batch(by_segment(x, count=count, width=self.segment)) for x in tokens)
        added = self.long_term.fit(self._remembered(*each), first=first.flatten())
        return list(added.unflatten(0, first.shape).unbind(1))

    def _write(
        self,
        signal: Signal,
        reads: Int[Tensor, "b edges"],
        q: Float[Tensor, "b h s w d"],
        real: Bool[Tensor, "b s w"] | None,
        added: list[Signal],
    ) -> tuple[list[Signal], list[Int[Tensor, "b edges"]]]:
        """The signals before each write and after the last; for each write, what was read below each edge.

        Sticky writes wait for one another: each takes where its segment reads, the quantiles of that, and two
        products. Other writes are all of one kind, and go side by side.
        """
        long, sticky = self.long_term, Sticky(self.samples, like=signal)
        if added and not self.sticky:
            signals = long.refits(signal, sticky.even, added)
            if self.detach:
                signals[1:] = [x.detach() + (y - y.detach()) for x, y in zip(signals[1:], added, strict=True)]
            return signals, [reads] * len(added)
        signals, masses = [signal], []
        with torch.no_grad():
            w, b = long.logit_weights(signal)
        for n, more in enumerate(added):
            with torch.no_grad():
                where = long.locate(q[:, :, n], self._keys(signal @ w), b)
                mass = sticky.mass_below(where, real=None if real is None else real[:, n])
                masses.append(mass if n else reads + mass)
                points = sticky.points(masses[n])
            signal = long.refit(signal.detach() if self.detach else signal, points, more)
            signals.append(signal)
        return signals, masses

    def _read(
        self, signals: Float[Tensor, "b s h f m"], q: Float[Tensor, "b h s w d"]
    ) -> tuple[Density, Float[Tensor, "b h s w d"]]:
        """Where each segment's queries read its signal, and W_o times what, side by side."""
        long, batch = self.long_term, signals.flatten(0, 1)
        w, b = long.logit_weights(q)
        where = long.locate(as_batch(q), self._keys(batch @ w), b)
        read = self._mix(long.read(where, self._values(batch)))
        return where, read.unflatten(0, signals.shape[:2]).transpose(1, 2)

    def _mix(self, z: Outputs) -> Outputs:
        """W_o z, of each head by itself or across heads."""
        W_o = self.W_o.to(z.dtype)
        if not self.across_heads:
            return z @ W_o
        return (z.transpose(1, 2).flatten(2) @ W_o).unflatten(2, z.shape[1::2]).transpose(1, 2)

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_divergence": torch.zeros(())}  # its graph cannot be copied


def side_by_side(x: list[Tensor]) -> Tensor:
    """One more axis behind the rows; of one thing it is a view."""
    return x[0][:, None] if len(x) == 1 else torch.stack(x, 1)


def of_each_row(x: list[Tensor], n: Int[Tensor, " b"]) -> Tensor:
    """Each row of the one of `x` with that row's number."""
    first = len(x) * torch.arange(len(n), device=n.device)
    return side_by_side(x).flatten(0, 1).index_select(0, first + n)
