"""Where runs compute: settled before a spec is made, since another machine would settle it otherwise."""

import torch


def resolve(device: str, *, elsewhere: bool = False) -> str:
    """A device that is there: CUDA, else the CPU, for "auto". Raises `ValueError` for one that is not.

    elsewhere: whether runs compute on other machines, so that CUDA need not be on this one.
    """
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if elsewhere and device in {"cpu", "cuda"}:
        return device
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:  # torch raises all three
        raise ValueError(f"no device {device!r} here: {str(error).splitlines()[0]}") from None
    return device


def require_precision(precision: str, *, device: str) -> None:
    """Raise `ValueError` for a precision in which nothing trains there: Lightning would take another."""
    if precision == "16-mixed" and device == "cpu":
        raise ValueError(
            "precision '16-mixed' is for GPUs, and on the device 'cpu' nothing trains in it: take "
            "'bf16-mixed', or another device"
        )
