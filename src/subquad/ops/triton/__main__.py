import argparse
import sys

from subquad.ops.triton.gate import REGISTERS, cases, check, families, search

parser = argparse.ArgumentParser(prog="python -m subquad.ops.triton", description="compile kernels")
parser.add_argument(
    "--write", action="store_true", help="write what the tables lack of this version of Triton"
)
parser.add_argument("only", nargs="*", help="parts of names of lines: sm_90, bfloat16, out")
arguments = parser.parse_args()
failed = 0
for module, family in families():
    for case in cases(family):
        known = arguments.write and REGISTERS in family.configs.lines.get(case.name, {})
        if known or not set(arguments.only) <= {*case.name.split(), module}:
            continue
        faults = search(family, case) if arguments.write else check(family, case)
        failed += bool(faults)
        print(f"{module} {case.name}: {'; '.join(faults) or 'clean'}", flush=True)
sys.exit(f"{failed} kernels fail" if failed else 0)
