"""Kernels in Triton's interpreter, which takes the compiler's place when Triton is loaded: pytest by itself.

    TRITON_INTERPRET=1 pytest -o addopts= tests/interpreted

`tests/test_triton.py` starts one for each file here.
"""

import inspect
import os

import numpy as np
import pytest
import torch
from torch.utils._pytree import tree_leaves

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


@pytest.fixture(autouse=True)
def stays_within_its_tensors(monkeypatch):
    """The interpreter reads and writes wherever it is told to, as cards do until they fault."""
    from triton.runtime import interpreter

    executor, builder = interpreter.GridExecutor, interpreter.InterpreterBuilder
    begin, load, store = executor._init_args_hst, builder.create_masked_load, builder.create_masked_store
    lent: list[tuple[int, int]] = []  # the first byte of what the kernel was given, and that behind the last

    def begun(self, args, kwargs):
        given = begin(self, args, kwargs)
        lent[:] = [
            (storage.data_ptr(), storage.data_ptr() + storage.nbytes())
            for x in tree_leaves(given)
            if isinstance(x, torch.Tensor)
            for storage in [x.untyped_storage()]
        ]
        return given

    def require_lent(pointers, mask):
        first = pointers.data[mask.data.astype(bool)].astype(np.int64)
        size = pointers.get_element_ty().primitive_bitwidth // 8
        inside = np.zeros(first.shape, dtype=bool)
        for start, end in lent:
            inside |= (first >= start) & (first + size <= end)
        assert inside.all(), f"{(~inside).sum()} numbers lie outside the tensors that the kernel was given"

    def loaded(self, pointers, mask, *rest):
        require_lent(pointers, mask)
        return load(self, pointers, mask, *rest)

    def stored(self, pointers, value, mask, *rest):
        require_lent(pointers, mask)
        return store(self, pointers, value, mask, *rest)

    monkeypatch.setattr(executor, "_init_args_hst", begun)
    monkeypatch.setattr(builder, "create_masked_load", loaded)
    monkeypatch.setattr(builder, "create_masked_store", stored)


@pytest.fixture(autouse=True)
def prepares_the_language_once_a_launch(monkeypatch):
    """The interpreter does so again at each call of a function within a kernel, for half of its time."""
    from triton import language
    from triton.runtime import interpreter

    launch, prepare = interpreter.GridExecutor.__call__, interpreter._patch_lang
    prepared: set[tuple[bool, bool]] = set()

    def launched(self, *args, **kwargs):
        prepared.clear()
        return launch(self, *args, **kwargs)

    def prepared_once(function):
        named = [x for x in function.__globals__.values() if inspect.ismodule(x)]
        names = (language in named, language.core in named)
        if names in prepared:
            return None  # asked for by the launch alone, whose kernel comes first
        prepared.add(names)
        return prepare(function)

    monkeypatch.setattr(interpreter.GridExecutor, "__call__", launched)
    monkeypatch.setattr(interpreter, "_patch_lang", prepared_once)
