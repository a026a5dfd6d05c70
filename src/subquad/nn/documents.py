"""Several documents in one row, none of which sees another.

Each is encoded as a row of its own, so that positions begin with it, and no mechanism sees out of it.
Documents of like lengths share a batch, of which less than half is padding.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from subquad.mechanism import Valid
from subquad.nn.positions import HiddenStates

Documents = Int[Tensor, "b t"]  # the tokens of a row that have one number are a document, in their order
Boundaries = Int[Tensor, " n"]  # where documents begin that follow one another, and where the last ends

Encode = Callable[[HiddenStates, Valid | None], HiddenStates]  # of whole rows, token by token


def by_document(
    encode: Encode, x: HiddenStates, *, valid: Valid | None, documents: Documents
) -> HiddenStates:
    """What `encode` gives for each document as a row, where its tokens stand in `x`; zeros at padding.

    It is called for the documents between one power of two and the next, the shortest first. A GPU is waited
    for, since lengths are looked at. Raises `ValueError` for numbers that are not those of tokens.

    encode: from and to `(b t m)`; its `valid` is True at real tokens, None where all are.
    valid: True at real tokens. None: all are real. Numbers at padding say nothing.
    """
    require_documents(documents, x)
    tokens, out = x.flatten(0, 1), torch.zeros_like(x).flatten(0, 1)
    for places, real in batches(documents, valid):
        encoded = encode(tokens[places], real)
        if encoded.shape[:2] != places.shape:
            raise ValueError(
                "packed documents come out token by token, and these layers give out others than they get: "
                "give each a row of its own"
            )
        chosen = torch.ones_like(places, dtype=torch.bool) if real is None else real
        out = out.to(encoded.dtype).index_put((places[chosen],), encoded[chosen])
    return out.unflatten(0, x.shape[:2])


def batches(
    documents: Documents, valid: Valid | None
) -> Iterator[tuple[Int[Tensor, "d l"], Bool[Tensor, "d l"] | None]]:
    """Documents of like lengths: where their tokens stand among all, and which of these are theirs."""
    rows = torch.arange(len(documents), device=documents.device)[:, None]
    numbers, number = documents.unique(return_inverse=True)
    document = (rows * len(numbers) + number).flatten()
    real = torch.arange(documents.numel(), device=documents.device)
    real = real if valid is None else real[valid.flatten()]
    places = real[document[real].argsort(stable=True)]
    _, lengths = document[places].unique_consecutive(return_counts=True)
    starts = lengths.cumsum(0) - lengths
    like = defaultdict(list)
    for index, length in enumerate(sizes := lengths.tolist()):
        like[(length - 1).bit_length()].append(index)
    for _, chosen in sorted(like.items()):
        longest = max(sizes[index] for index in chosen)
        index = torch.tensor(chosen, device=documents.device)
        slots = torch.arange(longest, device=documents.device)
        theirs = slots < lengths[index][:, None]
        slots = torch.where(theirs, starts[index][:, None] + slots, starts[index][:, None])
        full = all(sizes[index] == longest for index in chosen)
        yield places[slots], None if full else theirs


def documents_of(boundaries: Boundaries, *, length: int) -> Documents:
    """The numbers of the documents of one row, from 0, of their boundaries (`cu_seqlens`): `(n) -> (1 t)`.

    length: tokens of the row. Raises `ValueError` unless boundaries go from 0 to it and never back.
    """
    lengths = boundaries.diff()
    if not len(boundaries) or boundaries[0] != 0 or boundaries[-1] != length or (lengths < 0).any():
        raise ValueError(
            f"boundaries go from 0 up to the {length} tokens of the row, and these are {boundaries.tolist()}"
        )
    numbers = torch.arange(len(lengths), device=boundaries.device)
    return numbers.repeat_interleave(lengths)[None]


def boundaries_of(documents: Int[Tensor, "1 t"]) -> Boundaries:
    """The boundaries (`cu_seqlens`, in int32) of the documents of one row: `(1 t) -> (n)`.

    Raises `ValueError` where a document goes on behind another.
    """
    numbers, lengths = documents[0].unique_consecutive(return_counts=True)
    if len(numbers) != len(numbers.unique()):
        raise ValueError("boundaries are those of documents that stand in one piece, and one is in several")
    return torch.cat([lengths.new_zeros(1), lengths.cumsum(0)]).int()


def require_documents(documents: Any, x: Tensor) -> None:
    """Raise `ValueError` unless each token of `x` has a whole number, on its device."""
    if not isinstance(documents, Tensor):
        actual = type(documents).__name__
    elif documents.is_floating_point() or documents.dtype == torch.bool:
        actual = str(documents.dtype)
    elif documents.shape != x.shape[:2] or documents.device != x.device:
        actual = f"those of shape {tuple(documents.shape)} on {documents.device}"
    else:
        return
    raise ValueError(
        f"documents are whole numbers of shape {tuple(x.shape[:2])} (batch, tokens) on {x.device}, one for "
        f"all tokens of a document; not {actual}"
    )
