"""Kernels in Triton's interpreter, which takes the compiler's place when Triton is loaded: pytest by itself.

    TRITON_INTERPRET=1 pytest -o addopts= tests/interpreted

`tests/test_triton.py` starts one for each file here.
"""

import os

collect_ignore_glob = [] if os.environ.get("TRITON_INTERPRET") == "1" else ["test_*.py"]
