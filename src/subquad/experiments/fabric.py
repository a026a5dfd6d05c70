"""Lightning Fabric as trainings use it: one device, or this process's own in a group of ranks."""

import logging
import warnings
from typing import Any

from lightning.fabric import Fabric
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.fabric.strategies.ddp import DDPStrategy
from torch import distributed as dist

from subquad.experiments.device import require_precision
from subquad.experiments.spec import Fit


def fabric_of(spec: Fit) -> Fabric:
    """Of a training, without banners. Raises `ValueError` as `require_precision` does."""
    require_precision(spec.training.precision, device=spec.place.device)
    logging.getLogger("lightning.fabric").setLevel(logging.ERROR)
    options: dict[str, Any] = {"accelerator": spec.place.device, "precision": spec.training.precision}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fabric = Fabric(**options, **group_options(spec.training.devices))
        fabric.launch()
        return fabric


def group_options(devices: int) -> dict[str, Any]:
    """Those of one device, unless this process is in a group."""
    if devices == 1 or not (dist.is_available() and dist.is_initialized()):
        return {"devices": 1}
    strategy = DDPStrategy(
        cluster_environment=Started(dist.get_rank()),
        broadcast_buffers=False,  # all draw and learn the same, and the first validates by itself
    )
    return {"devices": devices, "strategy": strategy}


class Started(LightningEnvironment):
    """Says that the processes have been started, and which this one is."""

    def __init__(self, rank: int) -> None:
        super().__init__()
        self.rank = rank

    @property
    def creates_processes_externally(self) -> bool:
        return True

    def local_rank(self) -> int:
        return self.rank
