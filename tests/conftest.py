"""Small tensors gain nothing from many threads, and lose much where several test processes share cores."""

import torch

torch.set_num_threads(1)
