"""What `rows.py` does to rows, by Triton kernels: one launch each way, before a recurrence and after it."""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from subquad.ops.recurrence.rows import Fusion, Gates, RecurrenceInputs, Rows, Scale
from subquad.ops.recurrence.triton import WIDEST_HEADS
from subquad.ops.recurrence.triton_launches import inputs
from subquad.ops.recurrence.triton_row_kernels import after, after_backward, before, before_backward
from subquad.ops.triton.configs import Config, Configs, Family
from subquad.ops.triton.launch import Kernel, launch, side_by_side, tokens
from subquad.ops.triton.products import block, products_of


class Changes(NamedTuple):
    """What becomes of tokens, in the words of the kernels."""

    KEYS: str  # "turned", "unit", "scaled" or "none"
    VALUES: bool
    LOGITS: bool

    @classmethod
    def of(cls, fusion: Fusion) -> "Changes":
        keys = "none" if fusion.q_scale == 1 else "scaled"
        if fusion.qk_l2norm_eps:
            keys = "unit"
        if fusion.rotary is not None:
            keys = "turned"
        return cls(keys, fusion.swish_values, bool(fusion.gate_normalizer))

    def pick(self, new: RecurrenceInputs, old: RecurrenceInputs) -> RecurrenceInputs:
        """What is changed is new."""
        q, k = self.KEYS != "none", self.KEYS in ("turned", "unit")
        return RecurrenceInputs(
            new.q if q else old.q,
            new.k if k else old.k,
            new.v if self.VALUES else old.v,
            new.log_decay if self.LOGITS else old.log_decay,
            old.beta,
        )


def preprocess(tokens: RecurrenceInputs, fusion: Fusion) -> RecurrenceInputs:
    """As the recurrence takes them: in their own dtype, but decays that were logits in float32."""
    tokens, changes = tokens.each(side_by_side), Changes.of(fusion)
    new = changes.pick(tokens.each(room), tokens)
    if changes.LOGITS:
        logits = tokens.log_decay.expand(tokens.q.shape)
        new = new._replace(log_decay=logits.new_empty(logits.shape, dtype=torch.float32))
        tokens = tokens._replace(log_decay=logits)
    launch_before(before, [tokens, new], fusion, changes)
    return new


def preprocess_backward(grad: RecurrenceInputs, tokens: RecurrenceInputs, fusion: Fusion) -> RecurrenceInputs:
    """Gradients of tokens in their own dtype, from those of what `preprocess` makes of them."""
    like, changes = tokens, Changes.of(fusion)
    tokens = tokens.each(side_by_side)
    new = changes.pick(tokens.each(room), grad)
    if changes.LOGITS:
        logits = tokens.log_decay.expand(tokens.q.shape)
        tokens = tokens._replace(log_decay=logits)
        log_decay = grad.log_decay.expand(logits.shape).contiguous()
        grad = grad._replace(log_decay=log_decay)
        new = new._replace(log_decay=torch.empty_like(log_decay))
    launch_before(before_backward, [tokens, grad, new], fusion, changes)
    dlog_decay = new.log_decay.sum_to_size(like.log_decay.shape).to(like.log_decay.dtype)
    dbeta = None if new.beta is None or like.beta is None else new.beta.to(like.beta.dtype)
    dq, dk, dv = (x.to(like.v.dtype) for x in new[:3])
    return RecurrenceInputs(dq, dk, dv, dlog_decay, dbeta)


def postprocess(raw: Gates, fusion: Fusion, dtype: torch.dtype) -> Gates:
    """Outputs in that dtype."""
    out, gate = raw.new_empty(raw.shape, dtype=dtype), gate_of(fusion, raw)
    launch_after(after, raw, [tokens(raw), fusion.scale, tokens(gate), tokens(out)], fusion)
    return out


def postprocess_backward(
    grad: Gates, raw: Gates, fusion: Fusion, dtype: torch.dtype
) -> tuple[Gates, Scale, Tensor]:
    """Gradients of outputs as they were before, in that dtype, of the scale and of the gate."""
    gate, grad, draw = gate_of(fusion, raw), side_by_side(grad), raw.new_empty(raw.shape, dtype=dtype)
    dgate = raw.new_empty(0) if fusion.gate is None else room(gate)
    blocks, all_heads = programs(after_backward, raw)[0]
    dscale = raw.new_empty(blocks * all_heads, raw.shape[3])
    rows = [tokens(raw), tokens(grad), fusion.scale, tokens(gate), tokens(draw)]
    launch_after(after_backward, raw, [*rows, tokens(draw if fusion.gate is None else dgate), dscale], fusion)
    return draw, dscale.sum(0), dgate


def launch_before(kernel: Kernel, groups: list[RecurrenceInputs], fusion: Fusion, changes: Changes) -> None:
    if changes == ("none", False, False):
        return
    q, v = groups[0].q, groups[0].v
    (_, heads, n, D), E = q.shape, v.shape[3]
    inputs, *others = (group[:4] for group in groups)
    all_rows = [*inputs, turns_of(fusion, q), *(x for group in others for x in group)]
    grid, config = programs(kernel, max(q, v, key=lambda x: x.shape[3]))
    launch(
        kernel,
        grid,
        *((x, *x.stride()[:3]) for x in all_rows),
        *(fusion.q_scale, fusion.qk_l2norm_eps, fusion.gate_normalizer, n, heads),
        config=config,
        **{"D": D, "E": E, "BD": block(D), "BE": block(E), **changes._asdict()},
    )


def launch_after(kernel: Kernel, raw: Gates, inputs: list[Any], fusion: Fusion) -> None:
    grid, config = programs(kernel, raw)
    launch(
        kernel,
        grid,
        *(*inputs, fusion.rms_norm_eps, raw.shape[2], raw.shape[1]),
        config=config,
        **{"E": raw.shape[3], "BE": block(raw.shape[3]), "GATED": fusion.gate is not None},
    )


def programs(kernel: Kernel, like: Tensor) -> tuple[tuple[int, int], Config]:
    """Some rows of a head each."""
    (batch, heads, n, _), config = like.shape, FAMILY.configs.find(kernel, like)
    return (triton.cdiv(n, config.blocks["R"]), batch * heads), config


def gate_of(fusion: Fusion, raw: Gates) -> Gates:
    """Where there is none, something in its place, which is not read."""
    return raw if fusion.gate is None else side_by_side(fusion.gate)


def turns_of(fusion: Fusion, q: Rows) -> Rows:
    """One for each row of each head; the same where there are none."""
    if fusion.rotary is None:
        return q
    return side_by_side(fusion.rotary)[:, None].expand(q.shape)


def room(x: Tensor) -> Tensor:
    return x.new_empty(x.shape)


def candidates(kernel: str, dtype: torch.dtype, width: int, architecture: int) -> Iterator[Config]:
    for R in (32, 16):
        yield Config({"R": R}, warps=4, stages=1)


def calls(dtype: torch.dtype, width: int) -> Iterator[Callable[[], Any]]:
    """As retention, gated linear attention and the delta rule have it."""
    if width > WIDEST_HEADS[dtype]:
        return
    tokens, _ = inputs(dtype, width, channels=width)
    raw, scale = torch.empty(tokens.v.shape, device="meta"), torch.empty(width, device="meta")
    grads = tokens.each(lambda x: torch.empty(x.shape, dtype=products_of(dtype).saved, device="meta"))
    grads = grads._replace(log_decay=tokens.log_decay)
    normed = Fusion(rms_norm_eps=1e-5, scale=scale, gate=tokens.v)
    for fusion in (
        normed._replace(q_scale=0.5, rotary=torch.empty(1, tokens.q.shape[2], width, device="meta")),
        normed._replace(q_scale=0.5, gate_normalizer=16.0),
        normed._replace(qk_l2norm_eps=1e-6, swish_values=True, gate=None),
    ):
        yield partial(preprocess, tokens, fusion)
        yield partial(preprocess_backward, grads, tokens, fusion)
        yield partial(postprocess, raw, fusion, dtype)
        yield partial(postprocess_backward, tokens.v, raw, fusion, products_of(dtype).saved)


FAMILY = Family(Configs(Path(__file__).with_name("triton_rows.json"), candidates), calls)
