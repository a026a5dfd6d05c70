"""Native sparse attention (NSA): all blocks in outline, the blocks that matter in full, and a window.

    out_t = g_cmp Attn(q_t, K_cmp, V_cmp) + g_slc Attn(q_t, K_slc, V_slc) + g_win Attn(q_t, K_win, V_win)  (5)

with softmax attention Attn and gates g = sigmoid(gates_t). Of the tokens up to t the branches see

    compressed   K_cmp[c] = phi(k_(c d) .. k_(c d + l - 1)) for all c d + l - 1 <= t                       (7)
                 phi(x_1 .. x_l) = gelu([x_1 + e_1; ..; x_l + e_l] W_1) W_2 + b
    selected     the tokens of n blocks of l' each: the first, t's own, the one before it, and of the rest
                 before these the blocks j with the largest importance
                 p_slc[j] = sum_(m < l' / d) sum_(i < l / d) p_cmp[j l' / d + m - i]                       (9)
                 p_cmp = softmax(q_t . K_cmp / sqrt(d_k)), the weights of the compressed branch            (8)
    window       the w tokens before t, and t

so that p_slc[j] counts a compressed key once for each d tokens that it has in block j. Of its own block a
query sees the tokens up to itself, and all others lie before it: no later token plays a part. Choosing has no
gradient; phi learns from the compressed branch. Work is O(t^2 d_k / d) for the compressed branch and
O(t (n l' + w) d_k) for the others.

Yuan et al.: Native Sparse Attention: Hardware-Aligned and Natively Trainable Sparse Attention. ACL 2025,
arXiv:2502.11089, section 3.3; sizes are those of section 4.1, and the first block and the newest two count
among the n. As there, each branch has keys and values of its own. What it leaves open, and departures:

- Of phi it says an MLP with position encoding inside a block. Here it has d_k hidden units, all heads share
  it, keys have one and values another, and encodings e begin at zero.
- Gates are one for each head and branch, and linear in the layer's input before the sigmoid; the paper's MLP
  may have more layers.
- Each head chooses for itself. Where heads share keys and values the paper adds up their p_slc (10), to read
  each block once; a mechanism here is not told which heads share.
- Equation 9 has j l' / d - m - i, which is this where blocks and compressed keys are counted from 1.
- A query before token l - 1 sees no compressed key, and gets zeros of that branch.
- Layers have no rotary positions for it: what an MLP makes of turned keys depends on where they
  stand, not on distances alone.

Of code, fla's `naive_nsa` has l = d = l' and the mean for phi, and lucidrains'
native-sparse-attention-pytorch l = d and the mean of p_cmp over a block for (9); in both the branches share
keys and values.
"""

from typing import Annotated, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from subquad.bounds import Bound, Count
from subquad.mechanism import Dims, Keys, Mechanism, Outputs, Queries, Traits, Valid, Values
from subquad.mechanisms.local import LocalAttention, WindowState
from subquad.ops.attention import attention
from subquad.ops.block_attention import (
    GATHERED_QUERIES,
    Blocks,
    best_before,
    block_attention,
    gathered_blocks,
)
from subquad.ops.shared.allocation import concat_into
from subquad.ops.shared.graphed import graphed
from subquad.ops.shared.operator import call_op
from subquad.ops.shared.packing import Packing, take
from subquad.ops.shared.parallel import groups, turns
from subquad.ops.shared.pooling import Windows
from subquad.ops.shared.precision import wide
from subquad.ops.shared.scan import recompute, scan
from subquad.ops.shared.slots import KVCache, extend, newest, reserve, write_slots
from subquad.ops.shared.waiting import may_wait

CACHED_SCORES = 2**20  # that are made at once where loops in cache are fastest

Top = Annotated[int, Bound("at least 3: the first block and the newest two", lambda n: n >= 3)]
Gates = Float[Tensor, "b h s 3"]
Compressed = Float[Tensor, "b h p c"]  # keys, values, or both side by side


class NsaInputs(NamedTuple):
    q: Queries
    k: Keys  # of the selected branch
    v: Values
    compressed_k: Keys  # before they are compressed
    compressed_v: Values
    window_k: Keys
    window_v: Values
    gates: Gates  # logits for the compressed, the selected and the window's branch

    def to_compress(self) -> Float[Tensor, "b h s c"]:
        return torch.cat([self.compressed_k, self.compressed_v], -1)


class NsaState(NamedTuple):
    """All real tokens so far of the selected branch, and what the other branches keep."""

    tokens: KVCache
    compressed: Compressed  # where tokens are still to come it is finite, and is not read
    recent: Float[Tensor, "b h l c"]  # the last l tokens to be compressed, in a ring
    window: WindowState


class Compression(nn.Module):
    """phi: an MLP on the tokens of a block, side by side, with a position encoding for each place."""

    def __init__(self, length: int, width: int) -> None:
        super().__init__()
        self.e = nn.Parameter(torch.zeros(length, width))
        self.W_1 = nn.Parameter(torch.randn(length * width, width) * (length * width) ** -0.5)
        self.W_2 = nn.Parameter(torch.randn(width, width) * width**-0.5)
        self.b = nn.Parameter(torch.zeros(width))

    def define(self, block: Float[Tensor, "h l d"]) -> Float[Tensor, "h d"]:
        return F.gelu((block + self.e).flatten(1) @ self.W_1) @ self.W_2 + self.b

    def forward(self, blocks: Float[Tensor, "b h p l d"]) -> Float[Tensor, "b h p d"]:
        """The same, of many: (x + e) W_1 = x W_1 + e W_1."""
        e, W_1, W_2, b = (x.to(blocks.dtype) for x in (self.e, self.W_1, self.W_2, self.b))
        return F.gelu(blocks.flatten(3) @ W_1 + e.flatten() @ W_1) @ W_2 + b


class NsaAttention(Mechanism):
    """Attention to all blocks in outline, to those that matter in full, and to the nearest tokens.

    compression: l, tokens that are compressed into one key; a multiple of `stride`.
    stride: d, tokens from one compressed key to the next.
    block: l', tokens of a selected block; a multiple of `stride`, and no less than `compression`.
    top: n, blocks that a query sees, the first, its own and the one before it among them.
    window: w, tokens before it that a query sees in the window.

    Inputs beyond q, k and v, which are those of the selected branch: `compressed_k`, `compressed_v`,
    `window_k` and `window_v` for the other branches, and `gates`, of width 3, with the logits of the gates of
    the compressed branch, the selected one and the window.

    Approximates causal softmax attention by three attentions, whose gates need not sum to one. Where no more
    than n blocks are there, the selected branch is softmax attention.

    Not for short sequences: up to n l' tokens, 1,024 at the defaults, one branch is softmax attention already
    and the others come on top. Not for models that have been trained with other attention: keys and values of
    the branches, the compression and the gates are weights of their own. The state of a stream grows as that
    of softmax attention does, with a compressed key for every d tokens besides; a step only reads less of it.
    """

    inputs = NsaInputs
    traits = Traits(
        name="nsa",
        paper="arXiv:2502.11089",
        family="content",
        causal="strict",
        state="growing",
        cost=2.0,  # of the compressed branch; that of the others is 1
        tiny={"compression": 4, "stride": 2, "block": 4, "top": 4, "window": 3},
    )

    def __init__(
        self,
        dims: Dims,
        *,
        causal: bool,
        compression: Count = 32,
        stride: Count = 16,
        block: Count = 64,
        top: Top = 16,
        window: Count = 512,
    ) -> None:
        super().__init__(dims, causal=causal)
        if compression % stride or block % stride or compression > block:
            raise ValueError(
                f"'nsa': stride={stride!r} must divide compression={compression!r} and block={block!r}, and "
                "compression be no more than block"
            )
        self.l, self.d, self.block, self.top = compression, stride, block, top
        self.phi_k, self.phi_v = (Compression(compression, dims.head_dim) for _ in range(2))
        self.window = LocalAttention(dims, causal=True, width=window)

    def score_inputs(self) -> tuple[str, ...]:
        return ("q",)

    def definition(self, *inputs: Tensor, valid: Valid | None = None) -> Outputs:
        """Row by row without its padding, query by query."""
        out = torch.zeros_like(inputs[2])
        for row in range(len(out)):
            real = slice(None) if valid is None else valid[row]
            out[row, :, real] = self._define(NsaInputs(*(x[row][:, real] for x in inputs)))
        return out

    def _define(self, x: NsaInputs) -> Float[Tensor, "h n e"]:
        """One row without padding."""
        n, w = x.q.shape[1], self.window.span
        outputs = [x.v[:, :0]]
        starts = range(0, n - self.l + 1, self.d)
        k_cmp, v_cmp = (
            torch.stack([phi.define(y[:, c : c + self.l]) for c in starts], 1) if starts else y[:, :0]
            for phi, y in ((self.phi_k, x.compressed_k), (self.phi_v, x.compressed_v))
        )
        for t in range(n):
            q, own = x.q[:, t, None], t // self.block
            complete = sum(c + self.l - 1 <= t for c in starts)
            p_cmp = (q @ k_cmp[:, :complete].mT / q.shape[-1] ** 0.5).softmax(-1)
            p_slc = torch.stack([self._importance(p_cmp[:, 0], j) for j in range(own + 1)], 1)
            p_slc[:, [0, max(own - 1, 0), own]] = torch.inf
            first = p_slc.argsort(dim=-1, descending=True, stable=True)[:, : self.top]
            seen = torch.zeros_like(p_slc, dtype=torch.bool).scatter(1, first, True)
            seen = seen.repeat_interleave(self.block, 1)[:, None, : t + 1]
            scores = q @ x.k[:, : t + 1].mT / q.shape[-1] ** 0.5
            near_k, near_v = (y[:, max(t - w, 0) : t + 1] for y in (x.window_k, x.window_v))
            compressed = p_cmp @ v_cmp[:, :complete]
            selected = scores.masked_fill(~seen, -torch.inf).softmax(-1) @ x.v[:, : t + 1]
            window = (q @ near_k.mT / q.shape[-1] ** 0.5).softmax(-1) @ near_v
            g_cmp, g_slc, g_win = x.gates[:, t, None].sigmoid().split(1, -1)
            outputs.append(g_cmp * compressed + g_slc * selected + g_win * window)
        return torch.cat(outputs, 1)

    def _importance(self, p_cmp: Float[Tensor, "h p"], j: int) -> Float[Tensor, " h"]:
        """Equation 9."""
        per_block, overlap = self.block // self.d, self.l // self.d
        places = (j * per_block + m - i for m in range(per_block) for i in range(overlap))
        terms = (p_cmp[:, c] for c in places if 0 <= c < p_cmp.shape[1])
        return sum(terms, p_cmp.new_zeros(len(p_cmp))).detach()

    def forward(self, *inputs: Tensor, valid: Valid | None = None) -> Outputs:
        x = NsaInputs(*inputs)
        packing = Packing.of(valid, like=x.k)
        (tokens,) = wide(packing.pack(x.to_compress()))
        windows = Windows.of(tokens, packing.count, kernel=self.l, stride=self.d)
        window = self.window(x.q, x.window_k, x.window_v, valid=valid)
        return join(x.gates, *self._attend(x, self._compress(windows.tokens), packing), window)

    def _compress(self, blocks: Float[Tensor, "b h p l c"]) -> Compressed:
        k, v = blocks.chunk(2, -1)
        return torch.cat([self.phi_k(k), self.phi_v(v)], -1)

    def _attend(self, x: NsaInputs, outline: Compressed, packing: Packing) -> tuple[Outputs, Outputs]:
        """The branches of compressed and of selected keys, for a whole sequence."""
        q, k, v = wide(*(packing.pack(y) for y in (x.q, x.k, x.v)))
        k_cmp, v_cmp = outline.chunk(2, -1)
        chosen = call_op(_most_important, q.detach(), k_cmp.detach(), self.l, self.d, self.block, self.top)
        lengths = None if packing.valid is None else packing.count
        selected = block_attention(q, k, v, chosen, block=self.block, lengths=lengths)
        compressed = compressed_attention(q, k_cmp, v_cmp, self.l, self.d)
        return packing.unpack(compressed), packing.unpack(selected)

    def step(
        self,
        *inputs: Tensor,
        valid: Valid | None = None,
        state: NsaState | None = None,
        in_place: bool = False,
    ) -> tuple[Outputs, NsaState]:
        x = NsaInputs(*inputs)
        before = None if state is None else state.window
        window, near = self.window.step(
            x.q, x.window_k, x.window_v, valid=valid, state=before, in_place=in_place
        )
        if state is None:
            packing = Packing.of(valid, like=x.k)
            after = self._remember(self._initial_state(x, near), x, packing, in_place=False)
            return join(x.gates, *self._attend(x, after.compressed, packing), window), after

        def advance(
            *inputs: Tensor, valid: Valid | None, state: NsaState
        ) -> tuple[Float[Tensor, "b h t c"], NsaState]:
            x = NsaInputs(*inputs)
            packing = Packing.of(valid, like=x.k)
            after = self._remember(state, x, packing, in_place=in_place)
            i = state.tokens.count[:, None] + torch.arange(x.q.shape[2], device=x.q.device)
            return packing.unpack(torch.cat(self._read(packing.pack(x.q), after, i), -1)), after

        both, after = scan(advance, *inputs, valid=valid, state=state, chunk=GATHERED_QUERIES)
        compressed, selected = both.chunk(2, -1)
        return join(x.gates, compressed, selected, window), after._replace(window=near)

    def _initial_state(self, x: NsaInputs, near: WindowState) -> NsaState:
        """That of no token, but for the window."""
        none = x.to_compress()[:, :, :0]
        tokens = KVCache(x.k[:, :, :0], x.v[:, :, :0], torch.zeros_like(near.seen))
        recent = none.new_zeros(*none.shape[:2], self.l, none.shape[3])
        (compressed,) = wide(none)
        return NsaState(tokens, compressed, recent, near)

    def _remember(self, state: NsaState, x: NsaInputs, packing: Packing, *, in_place: bool) -> NsaState:
        """The state after one more chunk, but for the window."""
        seen, l, d = state.tokens.count[:, None], self.l, self.d
        tokens = extend(state.tokens, x.k, x.v, packing=packing, in_place=in_place)
        count, room = tokens.count[:, None], -(-tokens.k.shape[2] // d)
        known = torch.cat([state.recent, packing.pack(x.to_compress())], 2)

        def place(j: Int[Tensor, "b s"]) -> Int[Tensor, "b s"]:
            """Where token j stands among the known ones, of which the first l are a ring."""
            return torch.where(j < seen, j % l, l + j - seen).clamp(max=known.shape[2] - 1)

        # the blocks that lacked a token before, as many as the chunk may complete
        c = torch.arange(-(-x.k.shape[2] // d), device=seen.device) + complete(seen, l, d)
        j = (c[..., None] * d + torch.arange(l, device=seen.device)).flatten(1)
        made = self._compress(*wide(take(known, place(j), real=j < count).unflatten(2, (-1, l))))
        if in_place:  # where padding may ask for slots beyond the room
            made = write_slots(state.compressed, made, c % max(room, 1), real=c < complete(count, l, d))
        else:
            made = write_slots(enlarged(state.compressed, room), made, c)
        j = newest(tokens.count, l)
        return NsaState(tokens, made, take(known, place(j), real=j >= 0), state.window)

    def _read(self, q: Queries, state: NsaState, i: Int[Tensor, "b t"]) -> tuple[Outputs, Outputs]:
        """What tokens i get from compressed and from selected keys."""
        q, k, v = wide(q, state.tokens.k, state.tokens.v)
        k_cmp, v_cmp = state.compressed.chunk(2, -1)
        c = torch.arange(k_cmp.shape[2], device=q.device)
        seen = c < complete(i + 1, self.l, self.d)[..., None]
        chosen = most_important(q.detach(), k_cmp.detach(), i, self.l, self.d, self.block, self.top)
        compressed = attention(q, k_cmp, v_cmp, seen=seen[:, None])
        return compressed, gathered_blocks(q, k, v, chosen, block=self.block, i=i)

    def reserve(self, state: NsaState, tokens: int) -> NsaState:
        cache = reserve(state.tokens, tokens)
        return state._replace(
            tokens=cache, compressed=enlarged(state.compressed, -(-cache.k.shape[2] // self.d))
        )


def join(gates: Gates, compressed: Outputs, selected: Outputs, window: Outputs) -> Outputs:
    """Equation 5."""
    (gates,) = wide(gates)
    g_cmp, g_slc, g_win = gates.sigmoid().split(1, -1)
    return g_cmp * compressed + g_slc * selected + g_win * window


def enlarged(compressed: Compressed, room: int) -> Float[Tensor, "b h {room} c"]:
    """A copy, with zeros behind, so many in all; with fewer, where the tokens behind them were trimmed."""
    return F.pad(compressed, (0, 0, 0, room - compressed.shape[2]))


def complete(tokens: Int[Tensor, "*b"], l: int, d: int) -> Int[Tensor, "*b"]:
    """How many compressed keys have all of their tokens among the first so many."""
    return ((tokens - l) // d + 1).clamp(min=0)


@graphed(
    "compressed_attention",
    "Tensor q, Tensor k, Tensor v, int l, int d",
    learnt=3,
    shape=lambda q, k, v, *_: (*q.shape[:3], v.shape[3]),
)
def compressed_attention(q: Queries, k: Compressed, v: Compressed, l: int, d: int) -> Outputs:
    """What each query gets from the compressed keys that are complete; zeros where none is."""

    def part(q: Queries, k: Compressed, v: Compressed, stop: int) -> Outputs:
        i = torch.arange(stop - q.shape[2], stop, device=q.device)
        seen = torch.arange(k.shape[2], device=q.device) < complete(i + 1, l, d)[:, None]
        return attention(q, k, v, seen=seen[None, None])

    outs = (recompute(part, own, k[:, :, :c], v[:, :, :c], stop) for own, stop, c in parts(q, k, d))
    return concat_into(outs, v, *q.shape[:3], v.shape[3], dim=2).contiguous()


def parts(q: Queries, k: Compressed, d: int) -> list[tuple[Float[Tensor, "b h _ d"], int, int]]:
    """Queries that are taken at once, where they end, and how many compressed keys begin before that."""
    length, scores = q.shape[2], q.shape[0] * q.shape[1] * k.shape[2]
    several = groups(length, scores, most=CACHED_SCORES) if may_wait(q) else turns(length, scores)
    stops = [x.stop for x in several] or [0]
    sizes = [stop - start for start, stop in zip([0, *stops], stops, strict=False)]
    return [(x, stop, -(-stop // d)) for x, stop in zip(q.split(sizes, 2), stops, strict=True)]


def most_important(
    q: Queries, k: Compressed, i: Int[Tensor, "#b t"], l: int, d: int, block: int, top: int
) -> Blocks:
    """The blocks before its own that each query i sees: the first, the last and the most important ones."""
    seen = torch.arange(k.shape[2], device=q.device) < complete(i + 1, l, d)[..., None]
    limits = torch.finfo(q.dtype)  # of which the lowest gives no NaN where nothing is seen, nor chosen
    p_cmp = (q / q.shape[3] ** 0.5 @ k.mT).masked_fill(~seen[:, None], limits.min).softmax(-1)
    p_slc, own = importance(p_cmp, l // d, block // d), i // block
    j = torch.arange(p_slc.shape[3], device=q.device)
    p_slc = p_slc.masked_fill((j == own[..., None] - 1)[:, None], limits.max)
    return best_before(p_slc.masked_fill(j == 0, torch.inf), own, top - 1)  # no ties, which take longer


def importance(
    p_cmp: Float[Tensor, "b h t p"], overlap: int, per_block: int
) -> Float[Tensor, "b h t blocks"]:
    """Equation 9, with l / d = `overlap` and l' / d = `per_block`; at least one block, if of none."""
    p_cmp = F.pad(p_cmp, (overlap - 1, per_block - p_cmp.shape[3] % per_block))
    return p_cmp.unfold(3, overlap, 1).sum(-1).unflatten(3, (-1, per_block)).sum(-1)


@torch.library.custom_op("subquad::most_important", mutates_args=())
def _most_important(q: Tensor, k: Tensor, l: int, d: int, block: int, top: int) -> Tensor:
    """`most_important` of a whole sequence; a node of its own: in graphs, blocks depend on the length."""
    chosen = []
    for own, stop, c in parts(q, k, d):
        i = torch.arange(stop - own.shape[2], stop, device=q.device)
        chosen.append(most_important(own, k[:, :, :c], i[None], l, d, block, top))
    return torch.cat(chosen, 2)


@_most_important.register_fake
def _(q: Tensor, k: Tensor, l: int, d: int, block: int, top: int) -> Tensor:
    return q.new_empty(*q.shape[:3], top - 1, dtype=torch.int64)
