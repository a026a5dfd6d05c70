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


def require_devices(count: int, *, device: str, elsewhere: bool = False) -> None:
    """Raise `ValueError` for more devices than there are; on the CPU each is a process.

    elsewhere: as `resolve` takes it: a run is given one device there.
    """
    if count == 1:
        return
    if elsewhere:
        raise ValueError(
            f"devices={count} train a model on this machine, and the executor runs it on another with one "
            "device: take the executor 'local', or leave devices out"
        )
    there = torch.cuda.device_count() if device == "cuda" else 1
    if device != "cpu" and count > there:
        raise ValueError(
            f"devices={count} are more than the {there} of {device!r} here: take no more, or the "
            "device 'cpu', where each is a process"
        )
