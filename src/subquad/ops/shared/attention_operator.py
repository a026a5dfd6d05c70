"""Operators of softmax attention over some pairs: outputs, lse, and first derivatives.

    out_i = sum_j exp(s_ij - lse_i) v_j,    lse_i = log sum_j exp(s_ij)

Only out, lse and the backend that gave them are kept for the backward pass, which makes the weights again.
"""

from collections.abc import Callable
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from subquad.ops.shared.operator import call_op, differentiable_once
from subquad.ops.shared.precision import widened
from subquad.torch_internals import CustomOpDef


def attention_operator(
    name: str,
    inputs: str,
    forward: Callable[..., tuple[int, Any]],
    backward: Callable[..., tuple[Tensor, Tensor, Tensor]],
) -> CustomOpDef:
    """The operator `name` of q, k, v and more, by its schema `inputs`: out, lse and the backend's index.

    inputs    tensors first, then a list of tensors if there is one, then what is neither
    forward   from the inputs: the backend's index, and a result that begins with out and lse
    backward  from the gradients of out and lse, the backend's index, out and lse, and the inputs: the
        gradients of q, k and v
    """
    single, listed = inputs.count("Tensor ") + inputs.count("Tensor? "), inputs.count("Tensor[] ")

    def body(*inputs: Any) -> tuple[Tensor, Tensor, Tensor]:
        backend, (out, lse, *_) = forward(*inputs)
        return out, lse, torch.tensor(backend)

    def save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
        lists, ctx.options = inputs[single : single + listed], inputs[single + listed :]
        ctx.save_for_backward(*output, *inputs[:single], *chain(*lists))

    def gradients(ctx: Any, grad: Tensor, grad_lse: Tensor, _: Tensor) -> tuple[Any, ...]:
        out, lse, backend, *tensors = ctx.saved_tensors
        inputs, lists = tensors[:single], [tensors[single:]] * listed
        learnt = call_op(operator_backward, grad, grad_lse, backend, out, lse, *inputs, *lists, *ctx.options)
        nothing = [None] * (single - len(learnt)), [[None] * len(x) for x in lists], [None] * len(ctx.options)
        return *learnt, *chain(*nothing)

    operator = torch.library.custom_op(
        f"subquad::{name}",
        body,
        mutates_args=(),
        schema=f"({inputs}) -> (Tensor out, Tensor lse, Tensor backend)",
    )
    operator_backward = torch.library.custom_op(
        f"subquad::{name}_backward",
        backward,
        mutates_args=(),
        schema="(Tensor grad, Tensor grad_lse, Tensor backend, Tensor out, Tensor lse, "
        f"{inputs}) -> (Tensor, Tensor, Tensor)",
    )
    operator.register_fake(fake)
    operator_backward.register_fake(lambda grad, grad_lse, backend, out, lse, *inputs: fake_backward(*inputs))
    operator.register_autograd(gradients, setup_context=save)
    differentiable_once(operator_backward)
    return operator


def fake(q: Tensor, k: Tensor, v: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor]:
    lse = v.new_empty(v.shape[:3], dtype=widened(v.dtype))
    return v.new_empty(v.shape), lse, torch.empty((), dtype=torch.int64)


def fake_backward(q: Tensor, k: Tensor, v: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor]:
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)
