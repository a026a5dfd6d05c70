"""Layers as data-parallel training has them: every weight in every graph, whatever a batch holds."""

import pytest
import torch
from mechanism_names import ONE_OF_EACH_FILE
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

from subquad import MultiheadAttention, catalog


class SelfAttention(nn.Module):
    def __init__(self, name: str) -> None:
        super().__init__()
        traits = catalog()[name].traits
        causal = "values" if traits.causal == "values" else bool(traits.causal)
        self.layer = MultiheadAttention(8, 2, name, causal=causal, max_len=24, **traits.tiny)

    def forward(self, x: torch.Tensor, padding: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.layer(x, x, x, key_padding_mask=padding)[0], self.layer.mechanism.penalty()


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    meeting = f"file://{tmp_path_factory.mktemp('world')}/meeting"
    distributed.init_process_group("gloo", init_method=meeting, rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


@pytest.mark.parametrize("name", ONE_OF_EACH_FILE)
@pytest.mark.usefixtures("world")
def test_data_parallel_training_goes_on_after_a_batch_of_hardly_anything(name):
    model = DistributedDataParallel(SelfAttention(name))
    for length, real in ((3, 3), (3, 0), (24, 24)):
        out, penalty = model(torch.randn(2, length, 8), torch.arange(length).expand(2, -1) >= real)
        (out.sum() + penalty).backward()  # a weight without a gradient fails the next call
    assert all(parameter.grad is not None for parameter in model.parameters())
