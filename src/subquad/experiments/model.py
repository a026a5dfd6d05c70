"""The model of a row: the same skeleton and the same initial weights whatever the mechanism."""

from subquad.experiments.spec import Fit
from subquad.nn.encoder import EncoderConfig
from subquad.nn.initialise import initialise
from subquad.nn.model import ModelConfig, SequenceModel
from subquad.task import Dataset


def build_model(spec: Fit, data: Dataset) -> SequenceModel:
    """The model before its first step. Raises `ValueError` where it cannot be built as asked."""
    encoder = EncoderConfig(
        dim=spec.dim,
        depth=spec.depth,
        heads=spec.heads,
        attention=spec.attention,
        options=spec.options,
        causal=spec.causal,
        positions=spec.positions,
        max_len=spec.length,
        dropout=spec.dropout,
    )
    model = SequenceModel(ModelConfig(fields=data.fields, readout=data.objective.readout, encoder=encoder))
    initialise(model, seed=spec.seed)
    return model
