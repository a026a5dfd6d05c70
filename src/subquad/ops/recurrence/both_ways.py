"""A recurrence over a sequence forwards and backwards, in which what a token writes counts once.

    out_i = q_i^T (S_i + S'_i - beta_i k_i v_i^T)

where S_i has read the tokens up to i, and S'_i those from i on, by the same rule from the other end. Both
have written i itself, which is taken off once. What lies before i, and what lies behind it, has been faded
by all that stands between, i included, and by the delta rule corrected.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from subquad.ops.recurrence import NOTHING, decayed_product, delta_product
from subquad.ops.recurrence.decay import Matrix, Values
from subquad.ops.recurrence.rows import Fusion, RecurrenceInputs, key, postprocess
from subquad.ops.recurrence.sharing import compose, shard_map
from subquad.ops.shared.precision import wide
from subquad.shards import Shards


def both_ways(
    tokens: RecurrenceInputs, *, state: Matrix, fusion: Fusion = NOTHING, shards: Shards | None = None
) -> Values:
    """The outputs, in float32 at least. Raises `ValueError` for shapes or dtypes that do not fit.

    state: zeros, of one direction
    shards: of a sequence that several ranks share. None: it is whole.
    """
    tokens = tokens.each(lambda x: wide(x)[0])  # each way rounds by itself
    inner = fusion._replace(rms_norm_eps=0.0, scale=None, gate=None)
    if fusion.rotary is not None:
        inner = inner._replace(rotary=with_reversed(fusion.rotary.expand(tokens.q.shape[0], -1, -1), 1))
    log_decay = tokens.log_decay.expand(*tokens.q.shape[:2], -1, -1)
    both = tokens._replace(log_decay=log_decay).each(lambda x: with_reversed(x, 2))
    state = torch.cat([state, state])
    if shards is not None:
        maps, e = shards.gather(shard_map(both, zeros=state, fusion=inner)), state.shape[-1]
        before, behind = maps[: shards.rank], maps[shards.rank + 1 :].flip(0)
        rows = len(tokens.q)
        state = torch.cat([compose(before[:, :rows], e=e), compose(behind[:, rows:], e=e)])
    q, k, v, log_decay, beta = both
    if beta is None:
        out, _ = decayed_product(q, k, v, log_decay, state=state, fusion=inner)
    else:
        out, _ = delta_product(q, k, v, beta, log_decay, state=state, fusion=inner)
    forwards, backwards = out.unflatten(0, (2, -1))
    gate = None if fusion.gate is None else wide(fusion.gate)[0]
    out = forwards + backwards.flip(2) - written(tokens, fusion)
    return postprocess(out, fusion._replace(gate=gate))


def with_reversed(x: Tensor, axis: int) -> Tensor:
    """Rows, and behind them the same rows from the other end."""
    return torch.cat([x, x.flip(axis)])


def written(tokens: RecurrenceInputs, fusion: Fusion) -> Values:
    """What each query reads of what its own token writes; turns do not change it."""
    q, k, v, _, beta = tokens
    fusion = fusion._replace(rotary=None)
    read = (key(q, fusion, scale=fusion.q_scale) * key(k, fusion)).sum(-1, keepdim=True)
    read = read if beta is None else beta * read
    return read * (F.silu(v) if fusion.swish_values else v)
