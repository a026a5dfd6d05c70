"""Other packages on a card: those of `subquad bench`, and the kernels of flash-linear-attention and PyTorch.

Around the recurrences of flash-linear-attention PyTorch does what the mechanism does around its own, so that
both compute one function; only the norm of queries and keys is done by its kernel.
"""

from collections.abc import Callable, Mapping
from functools import partial
from importlib.util import find_spec

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.cuda.targets import FLA, FLEX, NYSTROM, REFORMER
from subquad.measure.peers import PEERS, Mix, import_quietly, normed, ours, rotated, theirs
from subquad.mechanism import Mechanism
from subquad.mechanisms.sparse import SparseAttention
from subquad.patterns import Blocks, Pattern

AGREES = (FLA, FLEX, *(name for name, peer in PEERS.items() if peer.agrees and name != "linformer"))
MIXED = (NYSTROM, REFORMER)  # they make tensors in float32, which they multiply with ours
COMPILED_MASK = 8192  # tokens from which the mask of FlexAttention is made by a compiled function


def attention_like(name: str, mechanism: Mechanism, tokens: int, real: Tensor) -> Mix:
    """The rival's attention on the mechanism's inputs; `ValueError` where its package is not installed.

    real: tokens of each sequence before its padding, or of all.
    """
    if name == FLEX:
        assert isinstance(mechanism, SparseAttention)
        return flex(mechanism.pattern, tokens, real)
    if name == FLA:
        if find_spec("fla") is None:
            raise ValueError('it is not installed; pip install "fla-core"')
        return RECURRENCES[mechanism.traits.name](mechanism, torch.arange(tokens, device=real.device))
    if PEERS[name].compiled and not real.is_cuda:
        raise ValueError("it is compiled, which a rehearsal leaves out")
    mix = PEERS[name].attention_like(mechanism, tokens)
    return in_mixed_precision(mix, real.device) if name in MIXED else mix


def in_mixed_precision(mix: Mix, device: torch.device) -> Mix:
    def run(**inputs: Tensor) -> Tensor:
        with torch.autocast(device.type, torch.bfloat16):
            return mix(**inputs)

    return run


def flex(pattern: Pattern, tokens: int, real: Tensor) -> Mix:
    """Its kernel with the mechanism's own mask, made as its manual has it."""
    package = import_quietly("torch.nn.attention.flex_attention")
    allowed, same = visible(pattern, tokens, real), len(real) == 1

    def seen(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        row = b * 0 if same else b
        return allowed(row, i, j) & (i < real[row]) & (j < real[row])

    batch = None if same else len(real)
    large = real.is_cuda and tokens >= COMPILED_MASK
    blocks = package.create_block_mask(seen, batch, None, tokens, tokens, device=real.device, _compile=large)
    attend = partial(package.flex_attention, block_mask=blocks)
    compiled = torch.compile(attend, dynamic=False) if real.is_cuda else attend
    return lambda q, k, v: compiled(q, k, v)


def visible(pattern: Pattern, tokens: int, real: Tensor) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """Whether row b's token i sees j: by the pattern, or by a table where it consists of blocks."""
    if not isinstance(pattern, Blocks):
        return lambda b, i, j: pattern.allows(i, j, real[b])
    first = torch.arange(0, tokens, pattern.size, device=real.device)
    table = torch.stack([pattern.allows(first[:, None], first, n) for n in real])
    return lambda b, i, j: table[b, i // pattern.size, j // pattern.size]


def linear(mechanism: Mechanism, places: Tensor) -> Mix:
    kernel = import_quietly("fla.ops.linear_attn").chunk_linear_attn

    def mix(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return ours(kernel(*theirs(F.elu(q) + 1, F.elu(k) + 1, v), scale=1.0, normalize=True)[0])

    return mix


def retention(mechanism: Mechanism, places: Tensor) -> Mix:
    kernel = import_quietly("fla.ops.retention").chunk_retention
    waves = 10_000 ** -torch.linspace(0, 1, mechanism.dims.head_dim // 2, device=places.device)
    rotations = torch.polar(torch.ones_like(waves), places[:, None] * waves)

    def mix(q: Tensor, k: Tensor, v: Tensor, gate: Tensor) -> Tensor:
        q, k = (rotated(x.float(), rotations).to(x.dtype) for x in (q, k))
        return normed(ours(kernel(*theirs(q, k, v))[0]), mechanism) * F.silu(gate)

    return mix


def gated_linear(mechanism: Mechanism, places: Tensor) -> Mix:
    kernel = import_quietly("fla.ops.gla").chunk_gla

    def mix(q: Tensor, k: Tensor, v: Tensor, forget: Tensor, gate: Tensor) -> Tensor:
        decay = F.logsigmoid(forget.float()) / getattr(mechanism, "tau")  # noqa: B009
        return normed(ours(kernel(*theirs(q, k, v, decay))[0]), mechanism) * F.silu(gate)

    return mix


def gated_delta(mechanism: Mechanism, places: Tensor) -> Mix:
    kernel = import_quietly("fla.ops.gated_delta_rule").chunk_gated_delta_rule
    weights = mechanism.state_dict()
    A, b = (weights[name].float()[:, None] for name in ("log_A", "b"))

    def mix(q: Tensor, k: Tensor, v: Tensor, beta: Tensor, alpha: Tensor, gate: Tensor) -> Tensor:
        decay = -A.exp() * F.softplus(alpha[..., 0].float() + b)
        q, k, v = theirs(*(F.silu(x) for x in (q, k, v)))
        g, rates = (x.transpose(1, 2) for x in (decay, beta[..., 0].sigmoid()))
        out = kernel(q, k, v, g=g, beta=rates, scale=1.0, use_qk_l2norm_in_kernel=True)[0]
        return normed(ours(out), mechanism) * F.silu(gate)

    return mix


RECURRENCES: Mapping[str, Callable[[Mechanism, Tensor], Mix]] = {
    "linear": linear,
    "retention": retention,
    "gated-linear": gated_linear,
    "gated-delta": gated_delta,
}
