"""Bugs planted in the gated recurrences."""

from mutants.mutant import Mutant

DECAY = "ops/decay.py"
DELTA = "ops/delta_rule.py"
ROWS = "ops/rows.py"
RECURRENT = "mechanisms/recurrent.py"
RETENTION = "mechanisms/retention.py"
GATED = "mechanisms/gated_linear.py"

MUTANTS = [
    Mutant(
        "retention",
        "causal_by_resampling",
        "decays are not masked, and the future has not faded at all",
        DECAY,
        "return terms.cumsum(-2).exp_().tril_()",
        "return terms.cumsum(-2).exp_()",
    ),
    Mutant(
        "retention",
        "padding_is_invisible",
        "positions count padding",
        RETENTION,
        "state.seen[:, None] + valid.cumsum(1) - 1",
        "state.seen[:, None] + torch.ones_like(valid).cumsum(1) - 1",
    ),
    Mutant(
        "retention",
        "stream_equals_sequence",
        "a stream forgets how many tokens it has seen",
        RETENTION,
        "Turning(S, state.seen + new)",
        "Turning(S, 0 * state.seen + new)",
    ),
    Mutant(
        "retention",
        "memory",
        "one chunk as long as the sequence",
        DECAY,
        "CHUNK = 64",
        "CHUNK = 4096",
    ),
    Mutant(
        "gated-linear",
        "matches_definition",
        "a key fades at its own token already",
        DECAY,
        "start, end = log_decay.exp(), torch.ones_like(log_decay)",
        "start, end = log_decay.exp(), log_decay.exp()",
    ),
    Mutant(
        "gated-linear",
        "padding_is_invisible",
        "the past fades at padding",
        GATED,
        "forget.masked_fill(~valid[:, None, :, None], math.inf)",
        "forget",
    ),
    Mutant(
        "retention",
        "padding_is_invisible",
        "the past fades at padding",
        RECURRENT,
        "return log_decay if valid is None else log_decay.masked_fill(~valid[:, None, :, None], 0)",
        "return log_decay",
    ),
    Mutant(
        "gated-linear",
        "stream_equals_sequence",
        "gradients stop at chunks",
        DECAY,
        "grad_state = torch.addcmul(pulled[:, :, n], fading.whole[:, :, n], grad_state)",
        "grad_state = pulled[:, :, n]",
    ),
    Mutant(
        "gated-linear",
        "stream_equals_sequence",
        "the gradient of a decay leaves out what is read of earlier chunks",
        DECAY,
        "flow = earlier(k * dk).add_(later(q * dq)).add_(flow)",
        "flow = earlier(k * dk).add_(flow)",
    ),
    Mutant(
        "gated-linear",
        "half_precision",
        "the state is kept in half precision",
        RECURRENT,
        "wider = torch.promote_types(k.dtype, torch.float32)",
        "wider = k.dtype",
    ),
    Mutant(
        "delta",
        "matches_definition",
        "corrections of corrections are left out: a first order in place of the inverse",
        DELTA,
        "torch.linalg.solve_triangular(beta * alike, one, upper=False, unitriangular=True)",
        "one - beta * alike",
    ),
    Mutant(
        "delta",
        "stream_equals_sequence",
        "what the chunk found is not taken out before it is overwritten",
        DELTA,
        "lacking.append(v[:, :, n] - recalling[:, :, n] @ state)",
        "lacking.append(v[:, :, n])",
    ),
    Mutant(
        "gated-delta",
        "stream_equals_sequence",
        "what a key would recall from before the chunk has not faded",
        DELTA,
        "recalling, kept = inverse * beta.mT, fading.since_start * k, ",
        "recalling, kept = inverse * beta.mT, k, ",
    ),
    Mutant(
        "gated-delta",
        "state_goes_by_row",
        "rows share their memory",
        "mechanisms/gated_delta.py",
        "else state.S",
        "else state.S[:1].expand_as(state.S)",
    ),
    Mutant(
        "gated-delta",
        "matches_definition",
        "the gradient of a length is left out",
        ROWS,
        "return pull_swish(grad.sub(s.mul_((grad * s).sum(-1, keepdim=True))).mul_(r), x)",
        "return pull_swish(grad * r, x)",
    ),
    Mutant(
        "retention",
        "matches_definition",
        "gradients are turned as queries are, and not back",
        ROWS,
        "torch.cat([cos, -sin], -1)",
        "torch.cat([cos, sin], -1)",
    ),
    Mutant(
        "gated-linear",
        "matches_definition",
        "the gradient of the norm leaves out that the mean changes",
        ROWS,
        "grad.sub(normed.mul_((grad * normed).mean(-1, keepdim=True))).mul_(r)",
        "grad.mul_(r)",
    ),
]
