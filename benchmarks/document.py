"""The results as Markdown: what the terminal shows, and with an explanation docs/performance.md."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from benchmarks import verdicts
from benchmarks.targets import GATE, HEADS, WIDTH
from benchmarks.verdicts import OfRoofline, Outcome, Ratio, Results, Verdict

SIGNS: Mapping[Outcome, str] = {
    "met": "met",
    "short": "**short**",
    "missed": "**MISSED**",
    "not run": "not run",
}

INTRODUCTION = """\
# Speed and memory

This page is written by `python -m benchmarks --write docs/performance.md` and holds what that command
measured on one machine. Run it on yours: ratios carry over between machines of a kind, milliseconds do not.
`subquad bench` does the same for any mechanism, shape and dtype.

"""

METHOD = f"""
## How it is measured

Batch 1, {HEADS} heads of {WIDTH}, float32, unless a row says otherwise. "kernel" is subquad with its
compiled kernels, "torch" is subquad without them (`backends.using("reference")`). The fused softmax is
PyTorch's `scaled_dot_product_attention` with the same causality: on a CPU a flash kernel of linear memory,
a far stronger rival than attention written out. Each row runs in a process of its own, in which all who
take part are called in turns, round by round, after their outputs have been asserted: ours against the
definition in float64 (gradients too, where they are timed), those peers that compute the same function
against ours. One thread is measured by processor time, which other processes hardly disturb; two threads by
the clock on the wall. Figures are medians; in brackets the ratio between opposite quartiles. Memory is the
rise of a fresh process's resident memory over one call. Of a peer only the core is timed: its projections
are replaced by the identity. The peers' versions stand below; `pip install "subquad[peers]"` brings them.

A ratio is the rival's time over ours. "Short" is below the target, "MISSED" below {GATE:.0%} of it, where
the command ends with status 1.

The roofline of a row is what its formula has to multiply, exponentiate, read and write, divided by the rates
that this machine reaches in the same minute: PyTorch's own products of large matrices, exponentials in
cache, and copies beyond it. It counts nothing that a chunked form does besides. That of a training step is
measured: the same encoder, whose layers give the values back instead of attending to them.
"""

LIMITS = """
## Honest limits

- **Short sequences with many features.** By count, FAVOR+ with m features multiplies as much for a token as
  softmax does over 2 m keys. Below that, use fewer features or the fused softmax.
- **Methods that are matrix products already.** Linformer and Nyströmformer spend their time in products,
  which every implementation hands to the same library: little can be won over a peer.
- **torch.compile** sees our loops as single nodes (`torch.library.custom_op`): it neither breaks on them
  nor speeds them up. It can speed up peers, so the compiled peer is a rival of its own, without the time
  that compiling takes.
- **bfloat16 and float16** are computed in float32, which kernels and operators make of a chunk or a few
  heads at a time: they save memory in the model, not time here.
- **A shared machine**: the quartiles in brackets tell how quiet it was. Neighbours that use its memory slow
  down what is bound by memory and not the products of the fused softmax, and so change ratios.
- **Double precision** takes the PyTorch tier. CUDA has a chapter of its own, the last.
- Peers that draw their own random numbers (Reformer) are checked for finite outputs only. The recurrences
  of flash-linear-attention are run with the turning, norms and gates that the mechanism has around them.

## What falls short, and why

The targets come from a study on a machine with AVX2, of products alone where a mechanism has more to do. The
table of rooflines shows, in its last column, what ratio to the fused softmax the machine itself allows. It
counts the formula's own work; the rest of the time goes here:

- **FAVOR+ with 256 features** runs its products at the machine's peak and its exponentials beside them; the
  causal form's triangles are a third more products. Short sequences pay for the features' matrix, brought
  into place for each call.
- **Causal linear attention and its relatives** (linear, retention, GLA, delta rule) multiply little for
  each number that they read and write. Products, the triangular part of a chunk among them, run at the
  machine's peak and are three fifths of the forward pass; the rest is two feature maps a token, a
  transpose, and memory. The backward pass goes over the sequence twice, because the sums of one direction
  would otherwise have to be kept for every chunk, and makes features both times. Vector units of twice the
  width speed up products and the fused softmax, and little of this.
- **Retention, GLA and the delta rule are measured whole**: with turning by position, swish, norms and
  gates, which the kernels do on rows in cache. GLA takes two exponentials and a logarithm for each decay,
  and its weights within 16 tokens are products by channel, which no matrix product can make. In the PyTorch
  tier each of these is an operator that reads and writes memory, and together they take longer than the
  products.
- **Windows, backward**: five products and the weights once more for each block. At the roofline itself the
  target of forward and backward in kernels would be met just so; products at the machine's peak take most
  of ours.
- **Windows and patterns in the PyTorch tier**: a block of queries computes the keys of all of them, a
  quarter more than it sees; exponentials, sums and copies of gathered keys run as operators of their own.
- **Half precision** of landmarks and projections is converted by PyTorch: three inputs and an output, a few
  heads at a time, into memory that is new as often as not. That is a fifth to a quarter of the time.
- **Crossovers**: among 2 m tokens FAVOR+ with m features multiplies as much as softmax does, so that no
  kernel can be faster before; Python and the making of tensors come on top.
- **Exponents of time** a little above one, where memory grows as it should: the shortest length fits in the
  cache, the longest does not.
- **Linformer's memory**: from outputs of 16 MB on heads are computed one after the other, which is faster,
  and the one at hand takes its own beside them. Of the two heads measured here that is half as much again.
- **A training step** of the encoder is mostly its projections and feed-forward layers, which all rows
  share: the roofline's table says how much of our step these take, and what ratio there would be if attention
  took no time at all.
- **Single steps of decoding** are mostly Python: checking inputs, filling in the kernel's call and making
  three tensors takes several times what the kernel takes.
"""


def page(results: Results, *, cuda: str) -> str:
    """`cuda`: the chapter of another run."""
    return INTRODUCTION + report(results) + METHOD + LIMITS + "\n" + cuda


def report(results: Results) -> str:
    """The tables."""
    judged, claimed = verdicts.verdicts(results), verdicts.claims(results)
    parts = [provenance(results), targets(judged)]
    of_roofline = list(verdicts.rooflines(results))
    if of_roofline:
        head = ("work", "tokens", "tier", "of the roofline", "target", "", "fused softmax over the roofline")
        parts.append(
            "## Of the roofline, one thread\n\n"
            + table(head, map(roofline_line, of_roofline), numbers=(1, 3, 4, 6))
        )
    if claimed:
        head = ("claim", "claimed", "found", "")
        rows = ((claim.name, claim.claimed, claim.found, sign(claim.met)) for claim in claimed)
        parts.append("## Lengths and limits\n\n" + table(head, rows))
    return "\n".join(parts)


def roofline_line(share: OfRoofline) -> tuple[str, ...]:
    limit = "" if share.limit is None else f"{share.limit:.3g}×"
    aim = ("", "") if share.aim is None else (f"{share.aim:.0%}", sign(share.part >= share.aim))
    return share.row.title, f"{share.length:,}", share.tier, f"{share.part:.0%}", *aim, limit


def sign(met: bool) -> str:
    return SIGNS["met" if met else "short"]


def provenance(results: Results) -> str:
    """Where these figures come from."""
    machine = results["machine"]
    rates = next(
        (
            cell["rates"]
            for by_threads in results["rows"].values()
            for cell in by_threads.get("1", {}).values()
            if isinstance(cell, dict) and "rates" in cell
        ),
        None,
    )
    lines = [
        f"Machine: {machine['cpu']}, {machine['cores']} cores, {machine['memory_gb']} GB, {machine['os']}, "
        f"Python {machine['python']}.",
        "Versions: " + ", ".join(f"{name} {version}" for name, version in results["versions"].items()) + ".",
        f"Backend: {results['backend']}. Commit: {results['commit']}.",
        "Command: `python -m benchmarks" + command(results) + f"`, {results['seconds']:,} seconds.",
    ]
    if not results.get("finished"):
        lines.append("**This run was interrupted: some figures are missing.**")
    if rates:
        lines.append(
            f"Rates of one thread: products {rates['flops'] / 1e9:.0f} GF/s, copies "
            f"{rates['bytes'] / 1e9:.1f} GB/s, exponentials {rates['exponentials'] / 1e9:.2f} G/s."
        )
    return "\n".join(f"- {line}" for line in lines) + "\n"


def command(results: Results) -> str:
    only = [repr(name) if " " in name else name for name in results["only"]]
    counts = {count for by_threads in results["rows"].values() for count in by_threads}
    alone = ["--threads", "1"] if counts == {"1"} else []
    return " ".join(["", *["--quick"] * results["quick"], *alone, *(["--only", *only] if only else [])])


def targets(judged: Sequence[Verdict]) -> str:
    if not judged:
        return ""
    head = ("work", "tokens", "tier", "ours", "rival", "theirs", "1 thread", "2 threads", "target", "")
    summed = sign_counts(v.outcome for v in judged)
    return f"## Targets: {summed}\n\n" + table(head, map(line, judged), numbers=(1, 3, 5, 6, 7, 8))


def sign_counts(outcomes: Iterable[Outcome]) -> str:
    counts = Counter(outcomes)
    return ", ".join(f"{counts[sign]} {sign}" for sign in SIGNS)


def line(v: Verdict) -> tuple[str, ...]:
    unit = "MB" if v.target.figure == "memory" else "ms"
    return (
        v.row.title + (", memory" if v.target.figure == "memory" else ""),
        f"{v.target.length:,}",
        v.target.tier,
        quantity(v.ours, unit),
        v.target.rival,
        quantity(v.theirs, unit),
        times(v.one) if v.target.figure == "time" or v.one is None else f"{v.one.median:.3g}×",
        times(v.two),
        "" if v.aim is None else f"{v.aim:.3g}×",
        SIGNS[v.outcome] + (f": {v.reason}" if v.outcome == "not run" else ""),
    )


def quantity(value: float | None, unit: str) -> str:
    return "" if value is None else f"{value:,.3g} {unit}" if value < 1000 else f"{value:,.0f} {unit}"


def times(ratio: Ratio | None) -> str:
    return "" if ratio is None else f"{ratio.median:.3g}× ({ratio.low:.3g}–{ratio.high:.3g})"


def table(head: Sequence[str], rows: Iterable[Sequence[str]], *, numbers: Sequence[int] = ()) -> str:
    """As wide as it has to be, so that it reads as it stands; columns of numbers go to the right."""
    cells = [tuple(head), *(tuple(cell.replace("|", "\\|") for cell in row) for row in rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(head))]
    lines = [
        "| "
        + " | ".join(
            cell.rjust(width) if i in numbers else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        + " |"
        for row in cells
    ]
    rule = "|".join(
        "-" * (width + 1) + ":" if i in numbers else "-" * (width + 2) for i, width in enumerate(widths)
    )
    return "\n".join([lines[0], f"|{rule}|", *lines[1:]]) + "\n"
