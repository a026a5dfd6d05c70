"""What holds for every test."""

import pytest
import torch

torch.set_num_threads(1)  # small tensors gain nothing from more, and test processes share cores


@pytest.fixture(autouse=True)
def same_random_numbers_at_every_run():
    torch.manual_seed(0)
