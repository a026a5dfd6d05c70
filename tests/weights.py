"""The weights of attention, read off its outputs."""

import torch
from torch.nn import functional as F


def weights(form, q, k, *, width):
    """The matrix that a form applies to values, of which it takes `width` columns at a time."""
    count = k.shape[2]
    identity = F.pad(torch.eye(count).to(k), (0, -count % width)).expand(*k.shape[:3], -1)
    return torch.cat([form(q, k, columns) for columns in identity.split(width, -1)], -1)[..., :count]
