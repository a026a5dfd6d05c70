"""What all Triton kernels share: kernels for CUDA in Python, called by the operators' backends `triton.py`.

    availability.py   whether they may serve a card; needs no Triton to be asked
    products.py       products that are as exact as their inputs, and the same in Triton's interpreter
    tokens.py         tokens of strided tensors, read and written with masks
    configs.py        a table of block sizes, warps and stages, by architecture, dtype and width
    launch.py         the one place from which kernels are launched
    gate.py           compiles what backends launch, for cards that are not there, and judges it
    miscompiled.py    what Triton is known to compile wrongly, read off a kernel's intermediate code

Neither card nor driver is needed to prove them: `tests/interpreted` runs them on the CPU, and
`python -m subquad.ops.triton` compiles them. Modules that hold kernels import `triton`, and are loaded at the
first call.
"""
