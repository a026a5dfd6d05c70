"""The model of a row: the same skeleton and the same initial weights whatever the mechanism."""

from dataclasses import asdict

from subquad.experiments.spec import Fit
from subquad.nn.encoder import EncoderConfig
from subquad.nn.initialise import initialise
from subquad.nn.model import SequenceModel, SequenceModelConfig
from subquad.task import Dataset


def build_model(spec: Fit, data: Dataset) -> SequenceModel:
    """The model before its first step. Raises `ValueError` where it cannot be built so."""
    encoder = EncoderConfig(**asdict(spec.model), **asdict(spec.mechanism), max_len=spec.data.length)
    config = SequenceModelConfig(fields=data.fields, readout=data.objective.readout, encoder=encoder)
    model = SequenceModel(config)
    initialise(model, seed=spec.seed)
    return model
