"""The model of a row: the same skeleton and the same initial weights whatever the mechanism."""

from dataclasses import asdict

from subquad.experiments.spec import Fit
from subquad.nn.encoder import EncoderConfig
from subquad.nn.initialise import initialise
from subquad.nn.model import SequenceModel, SequenceModelConfig
from subquad.task import Dataset


def build_model(spec: Fit, data: Dataset) -> SequenceModel:
    """The model before its first step. Raises `ValueError` where it cannot be built so."""
    carried = spec.training.carry > 0
    max_len = None if carried else spec.data.length
    encoder = EncoderConfig(**asdict(spec.model), **asdict(spec.mechanism), max_len=max_len)
    config = SequenceModelConfig(fields=data.fields, readout=data.objective.readout, encoder=encoder)
    try:
        model = SequenceModel(config)
    except ValueError as error:
        if not carried:
            raise
        raise ValueError(f"{error}; where a state is carried, a document may be of any length") from None
    if carried:
        require_streaming(model)
    initialise(model, seed=spec.seed)
    return model


def require_streaming(model: SequenceModel) -> None:
    """Raise `ValueError` where a mechanism of the model has no state that could be carried."""
    for mechanism in model.encoder.mechanisms():
        if mechanism.traits.state is None:
            raise ValueError(
                f"{mechanism.traits.name!r} cannot stream, so that there is no state to carry: leave it out, "
                "or let each window stand by itself (carry=0)"
            )
