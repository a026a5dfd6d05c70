"""Kernels for the CPU in C++, behind plain C: optional, and the same numbers as PyTorch's operators.

They compute in float32; some read and write half precision too (`half.h`).

`subquad.backend()` says what is in use and why. The operators' backends `cpu.py` call them. They take
tensors as they come from projections, with any strides but the last, and check nothing: the operators do.
"""
