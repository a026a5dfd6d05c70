import argparse
import sys
from importlib import import_module

from subquad.ops.triton.gate import Family, cases, check, search

FAMILIES = (
    "linear_attention.triton_features",
    *(f"recurrence.triton_{name}" for name in ("heads", "channels", "delta", "rows", "steps")),
)

parser = argparse.ArgumentParser(prog="python -m subquad.ops.triton", description="compile kernels")
parser.add_argument("--write", action="store_true", help="add lines that the tables lack")
parser.add_argument("only", nargs="*", help="parts of names of lines: sm_90, bfloat16, out")
asked = parser.parse_args()
failed = 0
for module in FAMILIES:
    family: Family = import_module(f"subquad.ops.{module}").FAMILY
    for case in cases(family):
        known = asked.write and case.name in family.configs.lines
        if known or not set(asked.only) <= set(case.name.split()):
            continue
        faults = search(family, case) if asked.write else check(family, case)
        failed += bool(faults)
        print(f"{module} {case.name}: {'; '.join(faults) or 'clean'}", flush=True)
sys.exit(f"{failed} kernels fail" if failed else 0)
