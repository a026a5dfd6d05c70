import sys

from subquad.ops.native.build import BuildError, build_kernels

try:
    print(*build_kernels(extra=tuple(sys.argv[1:])), sep="\n")
except BuildError as error:
    sys.exit(f"not built: {error}")
