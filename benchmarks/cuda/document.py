"""The chapter on CUDA of docs/performance.md, and what a person does after a run."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.cuda import plan
from benchmarks.cuda.models import DEPTH
from benchmarks.cuda.plan import CARD
from benchmarks.cuda.targets import FUSED, OURS
from benchmarks.cuda.verdicts import NOT_MEASURED, Results, Verdict, proven, verdicts
from benchmarks.document import SIGNS, quantity, sign_counts, table, times
from subquad.ops.triton import availability

BEGIN, END = "<!-- CUDA: made by python -m benchmarks --device cuda -->", "<!-- end of CUDA -->"

UNMEASURED = """\
**No figure of this chapter has been measured yet.** Who has a card fills it in with one command, and
[cuda.md](cuda.md) says what was shown without one.
"""

METHOD = f"""\
Inputs are in bfloat16, {CARD.batch} sequences of {CARD.heads} heads of {CARD.width}, for an H100 or an
H200. A ratio is the rival's time over that of our fastest backend, which is named. The fused softmax is
PyTorch's `scaled_dot_product_attention` with the same causality and without a mask. All are called from
Python in turns, the calls of one queued; a step of decoding is captured in a CUDA graph, ours and
softmax over the keys so far. Padded sequences end after all, half, 7/8 and 3/4 of the tokens. A
training step is that of {DEPTH} layers of {CARD.heads * CARD.width} by AdamW, under autocast; language
models have as many tokens a step at all lengths. Recurrences are measured whole, with norms and gates,
and so are those of flash-linear-attention. Packages that mix precisions run under autocast. Nothing is
timed before outputs, streams and all gradients are near the definition in float64; our kernels give the
same bits twice. Memory is the peak of one call beyond its inputs. "Short" and "MISSED" are as above.
"""


def chapter(results: Results | None) -> str:
    judged = verdicts(results)
    parts = [
        "## On CUDA\n",
        UNMEASURED if results is None else provenance(results),
        f"### Targets on CUDA: {sign_counts(v.outcome for v in judged)}\n",
        targets(judged),
    ]
    if results is not None:
        parts += numbers(results), all_times(results)
    return "\n".join([BEGIN, *parts, "### How it is measured on CUDA\n", METHOD + END]) + "\n"


def provenance(results: Results) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in results["versions"].items())
    only = "".join(f" {name}" for name in ("--only", *results["only"]) if results["only"])
    quick = " --quick" if results["quick"] else ""
    lines = [
        f"Card: {results['card']}, compute capability {'.'.join(map(str, results['capability']))}, "
        f"driver {results['driver']}.",
        f"Versions: {versions}. Commit: {results['commit']}.",
        f"Command: `python -m benchmarks --device cuda{quick}{only}`, {results['seconds']:,} seconds.",
    ]
    if results["rehearsal"]:
        lines.append("**A rehearsal on a CPU: its times say nothing.**")
    if not results.get("finished"):
        lines.append("**This run was interrupted: some figures are missing.**")
    return "\n".join(f"- {line}" for line in lines) + "\n"


def targets(judged: list[Verdict]) -> str:
    head = ("work", "passes", "tokens", "ours", "", "rival", "theirs", "ratio", "target", "outcome")
    return table(head, map(line, judged), numbers=(2, 4, 6, 7, 8))


def line(v: Verdict) -> tuple[str, ...]:
    return (
        v.work.title,
        v.target.passes,
        f"{v.target.length:,}",
        v.ours or "",
        quantity(v.ours_ms, "ms"),
        v.target.rival,
        quantity(v.theirs_ms, "ms"),
        times(v.ratio),
        f"{v.target.ratio:.3g}×",
        SIGNS[v.outcome] if v.outcome != "not run" else v.reason or NOT_MEASURED,
    )


def numbers(results: Results) -> str:
    """Which backends were held against float64, and how near they are."""
    rows = [row for row in results["rows"].values() if row["kind"] == "Check"]
    head = ("work", "backend", "dtype", "head", "largest error", "outcome")
    lines = (
        (
            plan.find(row["work"]).title,
            row["backend"],
            row["dtype"],
            str(row["width"]),
            f"{max(row['errors'].values()):.1e}" if row.get("errors") else "",
            outcome(row),
        )
        for row in rows
    )
    return "### Numbers beside float64\n\n" + table(head, lines, numbers=(3, 4))


def outcome(row: dict[str, Any]) -> str:
    if "errors" in row:
        streams = f"; no streams: {row['unstreamed']}" if row["unstreamed"] else ""
        varies = f"; from call to call varies the {', '.join(row['varies'])}" if row.get("varies") else ""
        return f"**wrong**: {'; '.join(row['wrong'])}" if row["wrong"] else f"right{varies}{streams}"
    return row.get("failed") or row.get("unmeasured") or f"refuses: {row['refused']}"


def all_times(results: Results) -> str:
    rows = [row for row in results["rows"].values() if row["kind"] == "Race"]
    head = ("work", "passes", "tokens", "who", "time", "over softmax", "memory")
    lines = (cells for row in rows for cells in of_race(row))
    return "### All times on CUDA\n\n" + table(head, lines, numbers=(2, 4, 5, 6))


def of_race(row: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    work = plan.find(row["work"])
    what = work.title, row["passes"], f"{row['length']:,}"
    if "ms" not in row:
        yield *what, row.get("failed") or row["unmeasured"], "", "", ""
        return
    fused = row["ms"].get(FUSED)
    for name, timing in row["ms"].items():
        ratio = f"{fused['median'] / timing['median']:.3g}×" if fused else ""
        who = f"{OURS}, {name}" if name in work.backends and name != OURS else name
        yield *what, who, quantity(timing["median"], "ms"), ratio, quantity(row["mb"][name], "MB")
    for name, reason in row["missing"].items():
        yield *what, f"{name}: {reason}", "", "", ""


def with_chapter(page: str, chapter: str) -> str:
    """`page` with another chapter in the place of its own; `ValueError` where it has none."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END + "\n")
    if not (begin and end):
        raise ValueError(f"the page has no chapter between {BEGIN!r} and {END!r}; give docs/performance.md")
    return before + chapter + after


def chapter_of(page: str) -> str:
    """The chapter that stands in a page, to be kept; one without figures where there is none."""
    if BEGIN not in page:
        return chapter(None)
    return BEGIN + page.partition(BEGIN)[2].partition(END)[0] + END + "\n"


def next_steps(results: Results, saved: Path | None) -> str:
    """What a person does now."""
    if results["rehearsal"]:
        return "What comes next: on a card, python -m benchmarks --device cuda --quick --json FILE"
    lines = ["What comes next:"]
    if proven(results):
        major, version = results["capability"][0], availability.version()
        known = frozenset({*availability.PROVEN, (major, version)})
        lines += [
            "- Triton's kernels were right in all that was checked. Where `pytest -m cuda` passes too, they",
            "  serve this card by themselves with this line in src/subquad/ops/triton/availability.py:",
            f"  PROVEN: frozenset[tuple[int, tuple[int, ...]]] = {known!r}",
        ]
    else:
        lines.append("- Triton's kernels are not proven by this run: see the table of numbers.")
    if saved is None:
        lines.append(
            "- Nothing was saved: run it with --json FILE, to write the chapter of docs/performance.md."
        )
    else:
        command = f"python -m benchmarks --device cuda --read {saved} --write docs/performance.md"
        lines.append(f"- The chapter: {command}")
    return "\n".join(lines)
