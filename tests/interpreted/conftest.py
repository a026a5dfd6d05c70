"""Kernels in Triton's interpreter, which takes the compiler's place when Triton is loaded: pytest by itself.

    TRITON_INTERPRET=1 pytest -o addopts= tests/interpreted

`tests/test_triton.py` starts one for each file here.
"""

import os

import numpy as np
import pytest
import torch

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
collect_ignore_glob = [] if INTERPRETED else ["test_*.py"]


@pytest.fixture(autouse=True)
def rounds_as_cards_do(monkeypatch):
    """The interpreter cuts float32 off where cards round it to bfloat16."""
    from triton import language
    from triton.runtime import interpreter

    convert = interpreter._convert_float

    def rounded(x, given, wanted, mode):
        if (given, wanted) != (language.float32, language.bfloat16):
            return convert(x, given, wanted, mode)
        return torch.from_numpy(np.ascontiguousarray(x)).bfloat16().view(torch.uint16).numpy()

    monkeypatch.setattr(interpreter, "_convert_float", rounded)
