"""The command: many trials of each kind, a line for each kind, and status 1 where anything was lost."""

import argparse
import sys
import tempfile
import time
from pathlib import Path

from faults.process import Bench
from faults.trials import KINDS, attempt


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m faults", description=__doc__)
    parser.add_argument(
        "--comparisons", type=int, help="that are disturbed, of each kind; by default as many as take minutes"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the first; the others follow")
    parser.add_argument("--only", choices=KINDS, nargs="*", default=[*KINDS], help="kinds of faults")
    options = parser.parse_args()
    lost = 0
    print("| fault | comparisons | faults | lost or wrong | seconds |\n|---|---|---|---|---|", flush=True)
    with tempfile.TemporaryDirectory(prefix="subquad-faults-") as folder:
        bench = Bench(Path(folder))
        for name in options.only:
            comparisons = options.comparisons or KINDS[name].comparisons
            start, faults, wrong = time.monotonic(), 0, 0
            for seed in range(options.seed, options.seed + comparisons):
                results = attempt(bench, name, seed, Path(folder) / "trial")
                faults += len(results)
                for what in filter(None, results):
                    wrong += 1
                    print(f"{name}, seed {seed}: {what}", file=sys.stderr, flush=True)
            lost += wrong
            seconds = time.monotonic() - start
            print(f"| {name} | {comparisons} | {faults} | {wrong} | {seconds:.0f} |", flush=True)
    return 1 if lost else 0


if __name__ == "__main__":
    sys.exit(main())
