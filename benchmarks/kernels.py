"""Triton kernels on a card, in one command: compiled, held against float64, then timed beside fused softmax.

    python -m benchmarks.kernels --quick --out FILE   bfloat16, heads of 64, 4k and 32k: within eight minutes
    python -m benchmarks.kernels --out FILE           every dtype, heads of 32 to 128, 1k to 128k

A row is written as soon as it is known. Kernels are asked for by name, so that they serve where they are
unproven. The exit status is 1 where an output or a gradient is wrong; then nothing is timed.
"""

import argparse
import json
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from subquad.measure.timing import interleaved
from subquad.ops.backends import using
from subquad.ops.linear_attention import FeatureKind, KernelInputs, LinearCall, linear_attention

B, H, FEATURES = 4, 8, 256
KINDS = (FeatureKind.ELU, FeatureKind.FAVOR)
ERRORS = {torch.float32: 2e-5, torch.float16: 4e-3, torch.bfloat16: 2.5e-2}  # of norms

Form = tuple[FeatureKind, bool, torch.dtype, int]  # kind, causal, dtype, width


def main() -> int:
    parser = argparse.ArgumentParser("python -m benchmarks.kernels", description="Triton kernels on a card.")
    parser.add_argument("--quick", action="store_true", help="bfloat16, heads of 64, 4k and 32k tokens")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="where rows are added")
    options = parser.parse_args()

    def write(**row: Any) -> None:
        with options.out.open("a") as file:
            print(json.dumps(row), file=file, flush=True)
        print(row, flush=True)

    widths, dtypes = ((64,), (torch.bfloat16,)) if options.quick else ((32, 64, 128), tuple(ERRORS))
    forms = list(product(KINDS, (True, False), dtypes, widths))
    capability = torch.cuda.get_device_capability()
    write(card=torch.cuda.get_device_name(), capability=capability, torch=torch.__version__)
    with ProcessPoolExecutor(mp_context=get_context("spawn")) as pool:
        for form, count in zip(forms, pool.map(compiled, forms, [capability[0]] * len(forms)), strict=True):
            write(compiled=named(form), kernels=count)
    wrong = 0
    for form in forms:
        errors = errors_of(form)
        wrong += max(errors) > ERRORS[form[2]]
        write(checked=named(form), errors=errors)
    if wrong:
        return 1
    lengths = (4096, 32768) if options.quick else (1024, 4096, 16384, 32768, 131072)
    for length in lengths:
        for form in forms:
            write(timed=named(form), length=length, **times_of(form, length))
    return 0


def named(form: Form) -> str:
    kind, causal, dtype, width = form
    return f"{kind.name} {'causal' if causal else 'bidirectional'} {dtype} {width}"


def compiled(form: Form, major: int) -> int:
    """Compile what the form launches into Triton's cache, in a process of its own; how many kernels."""
    from subquad.ops.linear_attention import triton
    from subquad.ops.triton.availability import ARCHITECTURES
    from subquad.ops.triton.gate import need_of
    from subquad.ops.triton.launch import recorded

    kind, causal, dtype, width = form
    v = torch.empty(B, 4096, H, width, dtype=dtype, device="meta").transpose(1, 2)
    W = v.new_empty(FEATURES, width, dtype=torch.float32) if kind == FeatureKind.FAVOR else None
    with recorded(ARCHITECTURES[major]) as launches:
        for valid in (None, v.new_empty(B, 4096, dtype=torch.bool)):
            call = LinearCall(v, v, v, W, valid, kind, causal)
            triton.backward(v, call, triton.forward(call))
    for launch in launches:
        need_of(launch, ARCHITECTURES[major])
    return len(launches)


def inputs_of(form: Form, length: int) -> tuple[list[Tensor], Tensor | None]:
    kind, _, dtype, width = form
    generator = torch.Generator("cuda").manual_seed(0)
    q, k, v, grad = (
        torch.randn(B, length, H, width, generator=generator, device="cuda").to(dtype).transpose(1, 2)
        for _ in range(4)
    )
    W = torch.randn(FEATURES, width, generator=generator, device="cuda") * width**-0.25
    return [q, k, v, grad], W if kind == FeatureKind.FAVOR else None


def errors_of(form: Form) -> list[float]:
    """Of outputs and the gradients of q, k and v, beside the reference in float64."""
    (*qkv, grad), W = inputs_of(form, 1000)
    valid = torch.rand(B, 1000, device="cuda") < 0.7
    grad = grad.masked_fill(~valid[:, None, :, None], 0)
    qkv = [x.masked_fill(~valid[:, None, :, None], 0) for x in qkv]
    found = results(form, "triton", valid, W, grad, qkv)
    expected = results(form, "reference", valid, W, grad.double(), [x.double() for x in qkv])
    pairs = zip(found, expected, strict=True)
    return [((x.double() - y).norm() / y.norm()).item() for x, y in pairs]


def results(
    form: Form, backend: str, valid: Tensor, W: Tensor | None, grad: Tensor, qkv: list[Tensor]
) -> tuple[Tensor, ...]:
    """Outputs, and the gradients of q, k and v."""
    leaves = [x.detach().requires_grad_() for x in qkv]
    directions = None if W is None else W.to(torch.promote_types(grad.dtype, torch.float32))
    with using(backend):
        out = linear_attention(
            KernelInputs(leaves[0], leaves[1], form[0], directions), leaves[2], valid=valid, causal=form[1]
        )
        return (out.detach(), *torch.autograd.grad(out, leaves, grad))


def times_of(form: Form, length: int) -> dict[str, float]:
    """Milliseconds of a forward pass, and of one with its backward pass, beside fused softmax."""
    (q, k, v, grad), W = inputs_of(form, length)
    leaves = [x.detach().requires_grad_() for x in (q, k, v)]

    def ours(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        with using("triton"):
            return linear_attention(KernelInputs(q, k, form[0], W), v, valid=None, causal=form[1])

    def fused(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return scaled_dot_product_attention(q, k, v, is_causal=form[1])

    def forward(attend: Callable[..., Tensor]) -> Callable[[], object]:
        def run() -> None:
            with torch.no_grad():
                attend(q, k, v)

        return run

    def training(attend: Callable[..., Tensor]) -> Callable[[], object]:
        return lambda: torch.autograd.grad(attend(*leaves), leaves, grad)

    candidates = {
        "forward": forward(ours),
        "forward_sdpa": forward(fused),
        "training": training(ours),
        "training_sdpa": training(fused),
    }
    times = interleaved(candidates, repeats=5, seconds=0.2, warmup=0.02, device="cuda")
    return {name: time.median for name, time in times.items()}


if __name__ == "__main__":
    sys.exit(main())
