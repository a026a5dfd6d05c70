"""What a model goes on from, and where it stops: prompts of any lengths, and tokens that end a row.

Prompts are padded on the left, and a stream counts real tokens only, so that the last token of each is where
the batch ends.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from subquad.fields import Tokens
from subquad.nn.encoder import Encoder, EncoderState
from subquad.nn.model import SequenceModel

Prompts = Sequence[Sequence[int]]  # ids, as many in each as there are, one at least
Stops = Sequence[Sequence[int]]  # ids that, one after the other, end a row

ANY, NONE = -1, -2  # in a stop: whatever token; among the latest tokens: none as yet


class StopTokens:
    """What ends a row, and whether its latest tokens do.

    stop: sequences of tokens, any of which does; none: nothing.
    """

    def __init__(self, stop: Stops, *, device: torch.device) -> None:
        if not all(map(len, stop)):
            raise ValueError(f"a stop has at least 1 token, and one of {list(stop)!r} has none: leave it out")
        longest = max(map(len, stop), default=0)
        padded = [[ANY] * (longest - len(ids)) + list(ids) for ids in stop]
        self.wanted = torch.tensor(padded, dtype=torch.int64, device=device).reshape(len(stop), longest)

    def __bool__(self) -> bool:
        return len(self.wanted) > 0

    def initial(self, rows: int) -> Int[Tensor, "b l"]:
        """The latest tokens before the first: none of the prompt's."""
        return self.wanted.new_full((rows, self.wanted.shape[1]), NONE)

    def ended(self, latest: Int[Tensor, "*b l"]) -> Bool[Tensor, "*b"]:
        """Whether the latest tokens of a row are those of a stop."""
        return ((latest[..., None, :] == self.wanted) | (self.wanted == ANY)).all(-1).any(-1)


def append(latest: Int[Tensor, "*b l"], ids: Int[Tensor, "*b"]) -> Int[Tensor, "*b l"]:
    """The latest tokens after one more."""
    return torch.cat([latest, ids[..., None]], -1)[..., 1:]


def read_prompts(model: SequenceModel, prompts: Prompts) -> tuple[Float[Tensor, "b v"], EncoderState]:
    """What the model answers to the last token of each prompt, and its state after it: one pass."""
    longest = max(map(len, prompts))
    padded = torch.tensor([[0] * (longest - len(prompt)) + list(prompt) for prompt in prompts])
    lengths = torch.tensor([[len(prompt)] for prompt in prompts])
    valid = torch.arange(longest) >= longest - lengths
    device = next(model.parameters()).device
    mask = None if bool(valid.all()) else valid.to(device)
    out, state = model.step((padded.to(device),), mask)
    return out[:, -1], state


def tokens_of(prompts: Prompts, *, outputs: int) -> Bool[Tensor, "b v"]:
    """Which tokens each prompt has, of those that the model may answer."""
    present = torch.zeros(len(prompts), outputs, dtype=torch.bool)
    for row, prompt in zip(present, prompts, strict=True):
        row[[token for token in {*prompt} if token < outputs]] = True
    return present


def can_reserve(encoder: Encoder, state: EncoderState) -> bool:
    """Whether steps can write into the state; else each makes a new one."""
    try:
        encoder.reserve(state, 0)
    except ValueError:
        return False
    return True


def require_generating(model: SequenceModel, prompts: Prompts, **counts: int) -> None:
    """Raise `ValueError` unless the model can go on from these prompts.

    counts: what there must be at least one of, `tokens` after each prompt among them.
    """
    for name, count in counts.items():
        if count < 1:
            raise ValueError(f"{name} must be at least 1, not {count!r}")
    require_prompts(prompts, vocabulary=require_language_model(model).vocabulary)
    encoder, longest = model.config.encoder, max(map(len, prompts))
    if encoder.positions == "learnt" and longest + counts["tokens"] - 1 > (encoder.max_len or 0):
        raise ValueError(
            f"a prompt of {longest} tokens and {counts['tokens']} after it go beyond learnt positions, which "
            f"end at max_len={encoder.max_len}: ask for fewer, or train with sinusoidal or rotary positions"
        )


def require_language_model(model: SequenceModel) -> Tokens:
    """What the model takes; `ValueError` unless it says at each which token is next, and can be streamed."""
    fields, readout = model.config.fields, model.config.readout
    if not isinstance(fields, Tokens) or readout.per != "token" or readout.outputs > fields.vocabulary:
        raise ValueError(
            f"a model that generates answers at each token which one is next: this one takes {fields} and "
            f"gives {readout}"
        )
    for mechanism in model.encoder.mechanisms():
        name = mechanism.traits.name
        if mechanism.traits.state is None:
            raise ValueError(
                f"{name!r} cannot generate, since it has no stream to go on with: take a mechanism that "
                "streams, such as 'gated-delta'"
            )
        if not mechanism.causal:
            raise ValueError(f"{name!r} sees the future here: generate with a model built with causal=True")
    if model.training:
        raise ValueError("the model is in training mode, in which dropout is on: call its eval() before")
    return fields


def require_prompts(prompts: Prompts, *, vocabulary: int) -> None:
    if not prompts:
        raise ValueError("there is no prompt: give at least one")
    for place, prompt in enumerate(prompts):
        if not len(prompt):
            raise ValueError(f"prompt {place} is empty: give at least the token that sequences begin with")
        if min(prompt) < 0 or max(prompt) >= vocabulary:
            raise ValueError(
                f"prompt {place} has tokens from {min(prompt)} to {max(prompt)}: they go from 0 to "
                f"{vocabulary - 1}"
            )
