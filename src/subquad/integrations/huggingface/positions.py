"""More positions than a pretrained model was trained with."""

import torch
from torch import Tensor, nn

from subquad.integrations.huggingface.convert import M
from subquad.integrations.huggingface.layers import require_pretrained
from subquad.integrations.source import forward_source

TABLES = ("position_embeddings", "wpe", "embed_positions")  # what models call tables of positions
COUNT = "max_position_embeddings"  # what their configuration calls the number of rows
PER_POSITION = ("position_ids", "token_type_ids")  # buffers with an entry a position


def extend_positions(model: M, positions: int) -> M:
    """Let a model read as many as `positions` tokens; return it.

    A learnt table of positions is repeated from its beginning, so that neighbours stay neighbours: Beltagy,
    Peters, Cohan: Longformer. arXiv:2004.05150, section 5. Rotary positions have no table, and turn on beyond
    those that the model was trained with. Either way the model has to be trained on before it makes sense of
    the farther ones.

    model: of transformers, changed in place.
    positions: no fewer than it has.

    Raises `ValueError` for fewer, and for a model whose positions are made otherwise.
    """
    pretrained = require_pretrained(model)
    name = type(model).__name__
    rows: int | None = getattr(pretrained.config, COUNT, None)
    tables = [
        (owner, table)
        for owner in pretrained.modules()
        for attribute in TABLES
        if isinstance(table := getattr(owner, attribute, None), nn.Embedding)
    ]
    rotary = any("apply_rotary" in forward_source(type(module)) for module in pretrained.modules())
    if rows is None or not (tables or rotary):
        raise ValueError(
            f"{name} has neither a learnt table of positions nor rotary ones, and cannot be extended: take a "
            "model with more positions"
        )
    known = min([len(table.weight) - rows_in_front(table, rows) for _, table in tables], default=rows)
    if positions < known:
        raise ValueError(f"{name} has {known:,} positions, and cannot be extended to {positions:,}")
    for owner, table in tables:
        repeat_rows(table, rows_in_front(table, rows), positions)
        for buffer in PER_POSITION:
            if (counted := getattr(owner, buffer, None)) is not None:
                owner.register_buffer(buffer, longer(counted, len(table.weight)), persistent=False)
    setattr(pretrained.config, COUNT, rows + positions - known)
    return model


def rows_in_front(table: nn.Embedding, rows: int) -> int:
    """Those before the first position: RoBERTa counts on from its padding's row, BART has two of them."""
    return len(table.weight) - rows if table.padding_idx is None else table.padding_idx + 1


def repeat_rows(table: nn.Embedding, front: int, positions: int) -> None:
    weight = table.weight.detach()
    times = -(-positions // len(weight[front:]))
    rows = torch.cat([weight[:front], weight[front:].repeat(times, 1)[:positions]])
    table.weight = nn.Parameter(rows, requires_grad=table.weight.requires_grad)
    table.num_embeddings = len(rows)


def longer(buffer: Tensor, count: int) -> Tensor:
    """Numbers from 0 go on, and zeros stay zeros."""
    numbers = torch.arange(count, device=buffer.device)[None]
    return numbers if buffer.any() else torch.zeros_like(numbers)
