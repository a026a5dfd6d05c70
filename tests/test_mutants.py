"""The checks are themselves checked: plant a bug, and the check that is for it must see it.

Each mutant is a copy of the package with one piece of text replaced, run in a process of its own.
"""

import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

import subquad

PACKAGE = Path(subquad.__file__).parent


class Mutant(NamedTuple):
    mechanism: str
    check: str  # the check that must catch it
    bug: str
    file: str
    old: str
    new: str


LINEAR, SUMS, FAVOR = "mechanisms/kernel.py", "ops/kernel_sums.py", "features/favor.py"
SOFTMAX, PADDING, INFINITY = "mechanisms/softmax.py", "ops/padding.py", "mechanisms/infinity.py"
SEGMENTS, CONTINUOUS, SHORT = "memories/segments.py", "memories/continuous.py", "memories/short_term.py"

MUTANTS = [
    Mutant(
        "linear",
        "causal_by_gradients",
        "no causal mask inside a chunk",
        SUMS,
        "inside = (q @ k.mT).tril()",
        "inside = q @ k.mT",
    ),
    Mutant(
        "linear",
        "causal_by_gradients",
        "strict instead of inclusive: a token does not see itself",
        SUMS,
        "inside = (q @ k.mT).tril()",
        "inside = (q @ k.mT).tril(-1)",
    ),
    Mutant(
        "linear",
        "stream_equals_sequence",
        "the sums are never carried over",
        SUMS,
        "S, z = state.S + S, state.z + z",
        "S, z = state.S + 0 * S, state.z + z",
    ),
    Mutant(
        "linear",
        "stream_equals_sequence",
        "the normaliser is not carried over",
        SUMS,
        "S, z = state.S + S, state.z + z",
        "S, z = state.S + S, z",
    ),
    Mutant(
        "linear",
        "stream_equals_sequence",
        "the state is detached, so gradients stop at chunks",
        SUMS,
        "S, z = state.S + S, state.z + z",
        "S, z = state.S.detach() + S, state.z + z",
    ),
    Mutant(
        "linear",
        "matches_definition",
        "the feature map is left out for queries",
        LINEAR,
        "average(self.features(wide_q), self.features(wide_k)",
        "average(wide_q.exp(), self.features(wide_k)",
    ),
    Mutant(
        "linear",
        "padding_is_invisible",
        "padding is masked before phi only, and phi(0) is not zero",
        SUMS,
        "return k if valid is None else k.masked_fill(~valid[:, None, :, None], value)",
        "return k",
    ),
    Mutant(
        "linear",
        "padding_is_invisible",
        "padding is multiplied by zero, and 0 * NaN is NaN",
        PADDING,
        "return q, *(x.masked_fill(padding, 0) for x in keyed)",
        "return q, *(x * ~padding for x in keyed)",
    ),
    Mutant(
        "linear",
        "padding_is_invisible",
        "a query of NaN in padding reaches the gradients of keys",
        PADDING,
        "q = q.masked_fill(padding & ~q.isfinite().all(-1, keepdim=True), 0)",
        "pass",
    ),
    Mutant(
        "linear",
        "a_row_of_padding_gives_zeros",
        "the denominator is clamped, and its gradient explodes",
        SUMS,
        "return numerator / denominator.masked_fill(denominator == 0, 1)",
        "return (numerator + 1e-30) / (denominator + 1e-30)",
    ),
    Mutant(
        "linear",
        "weights_sum_to_one",
        "an epsilon in the denominator",
        SUMS,
        "return numerator / denominator.masked_fill(denominator == 0, 1)",
        "return numerator / (denominator + 1e-2)",
    ),
    Mutant(
        "linear",
        "half_precision",
        "sums are kept in half precision",
        LINEAR,
        "wide_q, wide_k, wide_v = wide(*hide(valid, q, k, v))",
        "wide_q, wide_k, wide_v = hide(valid, q, k, v)",
    ),
    Mutant(
        "linear",
        "half_precision",
        "the causal sums are kept in half precision",
        LINEAR,
        "q, k, v = wide(*hide(valid, q, k, v))\n        if",
        "q, k, v = hide(valid, q, k, v)\n        if",
    ),
    Mutant(
        "linear",
        "work",
        "quadratic work behind a linear claim",
        SUMS,
        "divide(q @ (k.mT @ v), q @ k.sum(2)[..., None])\n\n\ndef causal_average",
        "divide((q @ k.mT) @ v, q @ k.sum(2)[..., None])\n\n\ndef causal_average",
    ),
    Mutant(
        "linear",
        "memory",
        "one chunk as long as the sequence",
        LINEAR,
        "CHUNK = 64",
        "CHUNK = 4096",
    ),
    Mutant(
        "linear",
        "shapes_and_dtypes",
        "float32 out, whatever came in",
        LINEAR,
        "return out.to(v.dtype), state",
        "return out, state",
    ),
    Mutant(
        "linear",
        "batch_mates_do_not_matter",
        "a statistic over the batch",
        LINEAR,
        "wide_q, wide_k, wide_v = wide(*hide(valid, q, k, v))",
        "wide_q, wide_k, wide_v = wide(*hide(valid, q / q.abs().amax(), k, v))",
    ),
    Mutant(
        "linear",
        "gradients_reach_everything",
        "keys are detached",
        LINEAR,
        "average(self.features(wide_q), self.features(wide_k)",
        "average(self.features(wide_q), self.features(wide_k).detach()",
    ),
    Mutant(
        "linear",
        "cross_attention",
        "as many queries as keys are taken for granted",
        LINEAR,
        "wide_q, wide_k, wide_v = wide(*hide(valid, q, k, v))",
        "wide_q, wide_k, wide_v = wide(*hide(valid, q, k[:, :, : q.shape[2]], v[:, :, : q.shape[2]]))",
    ),
    Mutant(
        "linear",
        "refuses_what_it_lacks",
        "a causal form takes fewer queries than keys",
        LINEAR,
        "self.require_equal_lengths(q, k)",
        "pass",
    ),
    Mutant(
        "linear",
        "refuses_bad_masks",
        "a mask of floats is taken",
        PADDING,
        "if valid.dtype != torch.bool or valid.shape != (batch, keys):",
        "valid = valid[:, :keys].bool()\n    if False:",
    ),
    Mutant(
        "linear",
        "state_goes_by_row",
        "rows share their sums",
        SUMS,
        "S, z = state.S + S, state.z + z",
        "S, z = state.S[:1] + S, state.z[:1] + z",
    ),
    Mutant(
        "performer",
        "limit_is_softmax",
        "features of the wrong variance",
        FAVOR,
        "return q @ (self.W.to(q.dtype).mT * q.shape[-1] ** -0.25)",
        "return q @ (self.W.to(q.dtype).mT * q.shape[-1] ** -0.5)",
    ),
    Mutant(
        "performer",
        "limit_is_softmax",
        "directions that are not normal: the lengths are all one",
        FAVOR,
        "return directions * gaussian(rows, width, generator=generator).norm(dim=1, keepdim=True)",
        "return directions",
    ),
    Mutant(
        "performer",
        "matches_definition",
        "|k|^2 / 2 is left out",
        FAVOR,
        "return self.log_queries(k) - k.square()",
        "return self.log_queries(k) - 0 * k.square()",
    ),
    Mutant(
        "performer",
        "weights_sum_to_one",
        "features collapse at large norms for want of a shift",
        SUMS,
        "c = largest(log_k, dim=2)\n    k = (log_k - c).exp()\n    q =",
        "c = 0 * largest(log_k, dim=2) + 900\n    k = (log_k - c).exp()\n    q =",
    ),
    Mutant(
        "performer",
        "causal_by_resampling",
        "one shift for the whole chunk: a large future key drowns the past",
        SUMS,
        "M = largest(seen, dim=3)",
        "M = largest(m, dim=2)",
    ),
    Mutant(
        "performer",
        "stream_equals_sequence",
        "old sums are not rescaled when the shift moves",
        SUMS,
        "return ShiftedSums(old * state.S + k.mT @ v",
        "return ShiftedSums(state.S + k.mT @ v",
    ),
    Mutant(
        "performer",
        "stream_equals_sequence",
        "the past and the chunk are added on different scales",
        SUMS,
        "numerator = (a - top).exp() * numerator + (b - top).exp()",
        "numerator = (a - top).exp() * numerator + (a - top).exp()",
    ),
    Mutant(
        "performer",
        "deterministic",
        "features are drawn at every call",
        FAVOR,
        "return q @ (self.W.to(q.dtype).mT",
        "return q @ (torch.randn_like(self.W).to(q.dtype).mT",
    ),
    Mutant(
        "performer",
        "state_dict_round_trip",
        "features are not saved",
        FAVOR,
        'self.register_buffer("W", torch.empty(features, head_dim))',
        'self.register_buffer("W", torch.empty(features, head_dim), persistent=False)',
    ),
    Mutant(
        "performer",
        "signature",
        "an option that is not keyword-only",
        "mechanisms/performer.py",
        "self, dims: Dims, *, causal: bool, features: int = 256",
        "self, dims: Dims, features: int = 256, *, causal: bool",
    ),
    Mutant(
        "infinity",
        "matches_definition",
        "the past is not contracted",
        CONTINUOUS,
        "[self.tau * middles(self.samples, like=like), self.tau + (1 - self.tau) * new]",
        "[middles(self.samples, like=like), new]",
    ),
    Mutant(
        "infinity",
        "matches_definition",
        "a density as wide as the query's alone: the bump's own width is forgotten",
        CONTINUOUS,
        "variance[..., None] + width**2 for width",
        "variance[..., None] + 0 * width + 1e-4 for width",
    ),
    Mutant(
        "infinity",
        "matches_definition",
        "W_R r turns the other way: distances with the wrong sign",
        SHORT,
        "a_cos * sin - a_sin * cos",
        "a_sin * cos - a_cos * sin",
    ),
    Mutant(
        "infinity",
        "matches_definition",
        "reads are not remembered, so nothing is sticky",
        INFINITY,
        "reads = reads + histogram(where, real=readers)",
        "reads = reads + 0 * histogram(where, real=readers)",
    ),
    Mutant(
        "infinity",
        "stream_equals_sequence",
        "the last full segment is lost between chunks",
        INFINITY,
        "return out, Memory(short, unfinished",
        "return out, Memory(0 * short, unfinished",
    ),
    Mutant(
        "infinity",
        "stream_equals_sequence",
        "the long-term memory is detached between chunks",
        INFINITY,
        "return out, Memory(short, unfinished, signal,",
        "return out, Memory(short, unfinished, signal.detach(),",
    ),
    Mutant(
        "infinity",
        "padding_is_invisible",
        "segments count padding too",
        SEGMENTS,
        "end=start + real.sum(1)",
        "end=start + length",
    ),
    Mutant(
        "infinity",
        "causal_by_gradients",
        "a segment sees all of itself",
        INFINITY,
        "seen = (j <= i[..., None]) &",
        "seen = (j <= i[..., None] + self.segment) &",
    ),
    Mutant(
        "softmax",
        "matches_definition",
        "causality is forgotten",
        SOFTMAX,
        "is_causal=self.causal",
        "is_causal=False",
    ),
    Mutant(
        "softmax",
        "matches_definition",
        "scores are not scaled",
        SOFTMAX,
        "return F.scaled_dot_product_attention(q, k, v, is_causal=self.causal)",
        "return F.scaled_dot_product_attention(q, k, v, is_causal=self.causal, scale=1.0)",
    ),
    Mutant(
        "softmax",
        "padding_is_invisible",
        "the stream forgets the mask of earlier chunks",
        SOFTMAX,
        "valid = torch.cat([state.valid, valid], 1)",
        "valid = torch.cat([torch.ones_like(state.valid), valid], 1)",
    ),
    Mutant(
        "softmax",
        "state_growth",
        "a cache that grows is called bounded",
        SOFTMAX,
        'state="growing"',
        'state="bounded"',
    ),
    Mutant(
        "softmax",
        "refuses_what_it_lacks",
        "the bidirectional form streams",
        SOFTMAX,
        "        if not self.causal:\n            return super().step(q, k, v, valid=valid, state=state)\n",
        "",
    ),
    Mutant(
        "softmax",
        "work",
        "a claim of linear cost",
        SOFTMAX,
        "cost=2.0",
        "cost=1.0",
    ),
    Mutant(
        "softmax",
        "compiles",
        "control flow that depends on values",
        SOFTMAX,
        "        seen = valid[:, None, None, :]\n        if",
        "        seen = valid[:, None, None, :]\n        if valid.all():\n            q = 1 * q\n        if",
    ),
]

RUN = """
import sys
sys.path.insert(0, sys.argv[1])
import subquad
assert subquad.__file__.startswith(sys.argv[1]), subquad.__file__
from subquad.registry import find
from subquad.testing import certificate, contract
cls = find(sys.argv[2])
check, = (check for check in contract(cls) if check.__name__ == "check_" + sys.argv[3])
found = certificate.outcome(check, cls)
print(found.reason)
sys.exit(0 if found.passed else 1)
"""


@pytest.mark.slow
@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda m: f"{m.mechanism}: {m.bug}")
def test_a_planted_bug_is_caught(mutant, tmp_path):
    copy = tmp_path / "subquad"
    shutil.copytree(PACKAGE, copy, ignore=shutil.ignore_patterns("__pycache__"))
    source = (copy / mutant.file).read_text()
    assert mutant.old in source, f"{mutant.file} no longer holds {mutant.old!r}: plant the bug anew"
    (copy / mutant.file).write_text(source.replace(mutant.old, mutant.new))
    command = [sys.executable, "-c", RUN, str(tmp_path), mutant.mechanism, mutant.check]
    run = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert run.returncode == 1, f"survived: {run.stdout}{run.stderr[-2000:]}"
    assert run.stdout.strip(), run.stderr[-2000:]
