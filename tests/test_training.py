"""Every mechanism learns, and what it learnt holds in bfloat16."""

import pytest
import torch
from torch.nn import functional as F

from subquad.fields import Events, Readout
from subquad.nn.encoder import EncoderConfig
from subquad.nn.initialise import initialise
from subquad.nn.model import SequenceModel, SequenceModelConfig
from subquad.registry import catalog

SMALLER = {"infinity": {"segment": 16, "basis": 16, "samples": 16}}  # so that its long-term memory is read
SMALLER["infinity-gpt2"] = SMALLER["infinity"]
SMALLER["compressive"] = {"segment": 16, "memory": 16, "compressed": 16}


@pytest.mark.parametrize("name", catalog())
def test_a_mechanism_learns_and_stays_finite_in_bfloat16(name):
    generator = torch.Generator().manual_seed(0)
    numbers = torch.randn(8, 64, 1, generator=generator)
    categories = torch.randint(0, 20, (8, 64, 1), generator=generator)
    valid = torch.arange(64) < torch.randint(20, 65, (8, 1), generator=generator)
    target = ((numbers[..., 0] * valid).sum(1) > 0).float()
    encoder = EncoderConfig(
        dim=32,
        depth=2,
        heads=2,
        attention=name,
        options=SMALLER.get(name, {}),
        causal=not catalog()[name].traits.bidirectional,
        positions="sinusoidal",
        max_len=64,
    )
    model = SequenceModel(
        SequenceModelConfig(
            fields=Events(vocabularies=(20,), numeric=1), readout=Readout(outputs=1), encoder=encoder
        )
    )
    initialise(model, seed=0)
    optimiser = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(15):
        optimiser.zero_grad()
        loss = F.binary_cross_entropy_with_logits(model((categories, numbers), valid)[:, 0], target)
        (loss + model.penalty()).backward()
        optimiser.step()
        model.encoder.update()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
    assert model.eval().bfloat16()((categories, numbers.bfloat16()), valid).isfinite().all()
