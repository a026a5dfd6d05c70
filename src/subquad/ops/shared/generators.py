"""Random numbers that depend on what they are for, and on nothing else."""

import hashlib

import torch


def seeded(seed: int, *purpose: int | str) -> torch.Generator:
    """A generator on the CPU, the same in every process, and another wherever an argument differs."""
    return torch.Generator().manual_seed(digest(seed, *purpose))


def digest(*parts: int | str) -> int:
    """A seed from all the parts."""
    return int.from_bytes(hashlib.sha256("/".join(map(str, parts)).encode()).digest()[:8]) >> 1
