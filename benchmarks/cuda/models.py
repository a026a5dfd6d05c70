"""Training steps of whole models: an encoder of padded sequences, and a language model."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.cuda.contenders import Call, Contenders, by_backend, mask
from benchmarks.cuda.plan import Scale
from benchmarks.cuda.targets import FUSED, Work
from subquad.nn.encoder import Encoder, EncoderConfig

DEPTH = 6
VOCABULARY = 8192
STEP = 32768  # tokens of a language model's step, so that the logits fit


class LanguageModel(nn.Module):
    """A causal encoder between an embedding and its transpose."""

    def __init__(self, encoder: Encoder, width: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.embedding = nn.Embedding(VOCABULARY, width)

    def forward(self, tokens: Tensor) -> Tensor:
        """The loss of each next token, on average."""
        logits = F.linear(self.encoder(self.embedding(tokens[:, :-1])), self.embedding.weight)
        return F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())


def steps(work: Work, tokens: int, *, scale: Scale) -> Contenders:
    """A step of an optimiser in mixed precision: forward and back, and the weights changed."""
    prepare = encoder_loss if work.kind == "encoder" else language_model_loss

    def step(attention: str, **options: object) -> Call:
        width = scale.heads * scale.width
        torch.manual_seed(0)
        config = EncoderConfig(
            attention=attention,
            options=options,
            causal=work.causal,
            dim=width,
            depth=DEPTH,
            heads=scale.heads,
            max_len=tokens,
        )
        model, loss = prepare(Encoder(config).to(scale.device), work, tokens, scale)
        return optimised(model, loss, scale)

    ours = step(work.attention, **work.options)
    return {**by_backend(work, lambda: ours), FUSED: step("softmax")}


Prepared = tuple[nn.Module, Callable[[], Tensor]]


def encoder_loss(encoder: Encoder, work: Work, tokens: int, scale: Scale) -> Prepared:
    x = torch.randn(scale.batch, tokens, encoder.config.dim, device=scale.device)
    valid = mask(work, tokens, scale=scale)
    assert valid is not None
    padding = ~valid[..., None]
    return encoder, lambda: encoder(x, valid).masked_fill(padding, 0).square().mean()


def language_model_loss(encoder: Encoder, work: Work, tokens: int, scale: Scale) -> Prepared:
    batch = max(1, STEP // (tokens * scale.shrink))
    model = LanguageModel(encoder, encoder.config.dim).to(scale.device)
    x = torch.randint(VOCABULARY, (batch, tokens + 1), device=scale.device)
    return model, lambda: model(x)


def optimised(model: nn.Module, loss: Callable[[], Tensor], scale: Scale) -> Call:
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=scale.device == "cuda")

    def step() -> None:
        optimiser.zero_grad()
        with torch.autocast(scale.device, torch.bfloat16):
            value = loss()
        value.backward()
        optimiser.step()

    return step
