"""Buckets in PyTorch's operators: rounds of chunks, and the weights of a block of chunks (`rounds.py`)."""

import torch
from torch import Tensor
from torch.nn import functional as F

from subquad.ops.bucket_attention import BucketCall, BucketResult
from subquad.ops.bucket_attention.rounds import buffers, itself, places, rounds, slices, spread, windows
from subquad.ops.shared.allocation import empty_result
from subquad.ops.shared.precision import wide


def refuses(call: BucketCall) -> None:
    """Nothing: any device, any floating dtype."""


def forward(call: BucketCall) -> BucketResult:
    *tokens, order, labels, visibility = call
    q, k, v = wide(*tokens)
    out, lse = empty_result(v), v.new_empty(v.shape[:3])
    Q, K, V, order, labels, outs, logs = (x.flatten(0, 1) for x in (q, k, v, order, labels, out, lse))
    for heads in slices(len(Q), q.shape[2]):
        some = rounds(order[heads], labels[heads], visibility)
        sources = [x[heads].flatten(0, 1) for x in (Q, K, V)]
        memory = buffers(v, some[0], sources)
        outputs, mass = (torch.stack(buffers(v, some[0], [x] * len(some))) for x in (v, v[..., :1]))
        for number, round in enumerate(some):
            own, keys, values = map(round.take, sources, memory)
            for here in round.blocks():
                weights, mass[number, here] = round.weigh(own, keys, here)
                torch.bmm(weights, windows(values, here), out=outputs[number, here])
        place = places(order[heads], visibility.size)
        shares = mass.flatten()[place]
        merged = F.embedding_bag(
            place, outputs.flatten(0, 2), mode="sum", per_sample_weights=shares.softmax(-1)
        )
        logs[heads] = shares.logsumexp(-1).view_as(logs[heads])
        outs[heads] = merged.view_as(outs[heads])
    return BucketResult(out.to(call.v.dtype), lse)


def backward(grad: Tensor, call: BucketCall, result: BucketResult) -> tuple[Tensor, Tensor, Tensor]:
    *tokens, order, labels, visibility = call
    q, k, v, grad, out = wide(*tokens, grad, result.out)
    changes = [empty_result(x).zero_() for x in (q, k, v)]
    delta = (grad * out).sum(-1, keepdim=True)
    length, scale = q.shape[2], q.shape[3] ** -0.5
    inputs = [x.flatten(0, 1) for x in (q, k, v, grad, delta, result.lse[..., None])]
    order, labels = order.flatten(0, 1), labels.flatten(0, 1)
    for heads in slices(len(order), length):
        some = rounds(order[heads], labels[heads], visibility)
        sources = [x[heads].flatten(0, 1) for x in inputs]
        memory, found = buffers(v, some[0], sources), buffers(v, some[0], sources[:3])
        for round in some:
            own, keys, values, grads, deltas, tops = map(round.take, sources, memory)
            tops.masked_fill_(round.free, torch.inf)
            dq, dk, dv = (x.zero_() for x in found)
            for here in round.blocks():
                weights, mass = round.weigh(own, keys, here)
                weights.mul_(mass.sub_(tops[here]).exp_())
                change = torch.bmm(grads[here], windows(values, here).mT)
                change.sub_(deltas[here]).mul_(weights).mul_(scale)
                if visibility.self_only_if_alone:
                    itself(change).zero_()  # its score is a constant
                spread(dv, weights.mT @ grads[here], here)
                spread(dk, change.mT @ own[here], here)
                torch.bmm(change, windows(keys, here), out=dq[here])
            for to, x in zip(changes, found, strict=True):
                rows = to.view(-1, length, to.shape[3])[heads].flatten(0, 1)
                rows.index_add_(0, round.source, x.flatten(0, 1))
    dq, dk, dv = (x.to(call.q.dtype) for x in changes)
    return dq, dk, dv
