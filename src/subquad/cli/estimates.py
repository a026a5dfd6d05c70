"""What a comparison will take, as `subquad compare --dry-run` prints it, and times as people type them."""

import re
from collections.abc import Callable
from typing import TYPE_CHECKING

from rich.console import Console
from rich.text import Text

from subquad.cli.output import print_json

if TYPE_CHECKING:
    from subquad.experiments.config import Comparison
    from subquad.experiments.estimate import Cost, Estimate
    from subquad.records import Store

Tell = Callable[[str, float | None], None]

TIME = re.compile(r"(?:(\d+(?:\.\d+)?)h)?(?:(\d+(?:\.\d+)?)m)?(?:(\d+(?:\.\d+)?)s)?")


def seconds_of_text(text: str) -> float:
    """Of "90s", "10m", "2h" or "1h30m". Raises `ValueError`."""
    match = TIME.fullmatch(text)
    hours, minutes, seconds = (float(part or 0) for part in match.groups()) if match else (0.0, 0.0, 0.0)
    total = 3600 * hours + 60 * minutes + seconds
    if not total:
        raise ValueError(f"a time is written as in 90s, 10m, 2h or 1h30m, and is not {text!r}")
    return total


def estimated(
    config: "Comparison", store: "Store", *, budget: str | None, dry_run: bool, tell: Tell
) -> tuple["Comparison", "Estimate | None"]:
    """The comparison with the steps for which a budget has room, and of a dry run what it will take."""
    from subquad.experiments.comparison import plan
    from subquad.experiments.estimate import estimate, within_budget

    measured = None
    if budget is not None:
        config, measured = within_budget(config, seconds_of_text(budget), store, tell=tell)
        Console(stderr=True).print(f"{config.training.steps:,} steps a fit, for which {budget} has room")
    if not dry_run:
        return config, None
    return config, measured or estimate(plan(config, tell=tell), config, store, tell=tell)


def show_estimate(estimate: "Estimate", steps: int, *, as_json: bool) -> None:
    from subquad.cli import tables
    from subquad.cli.display import format_duration

    if as_json:
        return print_json(estimate.to_json(steps))
    title = f"estimated time, {steps:,} steps a fit"
    made = tables.table(title, "what", "runs", "step", "a run", "memory", "all")
    made.add_column("", overflow="fold")
    for kind in (estimate.baselines, estimate.fits, estimate.cells):
        for cost in kind:
            made.add_row(*map(Text, cells(cost, steps)))
        made.add_section()
    console = Console()
    console.print(made)
    at_a_time = f" with {estimate.workers} fits at a time" if estimate.workers > 1 else ""
    print(f"about {format_duration(estimate.seconds(steps))} in all{at_a_time}; nothing was recorded")


def cells(cost: "Cost", steps: int) -> tuple[str, ...]:
    from subquad.cli.display import format_duration

    return (
        cost.label,
        str(cost.runs),
        f"{1e3 * cost.step:,.0f} ms" if cost.step else "",
        format_duration(cost.run_seconds(steps)),
        "" if cost.training_peak_mb is None else f"{cost.training_peak_mb:,.0f} MB",
        format_duration(cost.seconds(steps)),
        cost.note,
    )
