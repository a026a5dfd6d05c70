"""That a mechanism survives what training set-ups do to modules: copying, storing, the meta device."""

import io
import pickle
from copy import deepcopy

import torch

from subquad.mechanism import Mechanism
from subquad.testing.mechanism.cases import (
    Tensors,
    assert_close,
    each_form,
    forms,
    gradients,
    leaves,
    make,
    random_inputs,
)

UNINITIALISED = 7  # what memory holds before weights are loaded into it


def check_copying_and_pickling(cls: type[Mechanism]) -> None:
    """Copied, pickled or stored between steps of training, it gives the same outputs and gradients."""
    for mechanism in each_form(cls):
        inputs = random_inputs(mechanism, requires_grad=True)
        if cls.traits.state is not None and mechanism.causal:
            mechanism.step(**inputs, state=mechanism.step(**inputs)[1])
        mechanism(**inputs)  # which may leave a penalty behind, with its graph
        for how, make_copy in {"copied": deepcopy, "pickled": pickled, "stored": stored}.items():
            try:
                twin = make_copy(mechanism)
            except Exception as error:
                raise AssertionError(f"it cannot be {how}: {type(error).__name__}: {error}") from error
            actual, expected = (outputs_and_gradients(x, inputs) for x in (twin, mechanism))
            assert_close(actual, expected, rtol=0, atol=0, msg=f"{how}: ".__add__)


def outputs_and_gradients(mechanism: Mechanism, inputs: Tensors) -> Tensors:
    mechanism.eval()
    out = mechanism(**inputs)
    mechanism.train()
    return {"out": out, **gradients(out, leaves(mechanism, inputs))}


def pickled(mechanism: Mechanism) -> Mechanism:
    return pickle.loads(pickle.dumps(mechanism))


def stored(mechanism: Mechanism) -> Mechanism:
    file = io.BytesIO()
    torch.save(mechanism, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


def check_meta_device_loading(cls: type[Mechanism]) -> None:
    """Built on the meta device, then given memory and weights, it is the mechanism whose weights they are."""
    for causal in forms(cls):
        mechanism = make(cls, causal=causal)
        mechanism.redraw(generator=torch.Generator().manual_seed(5))
        inputs = random_inputs(mechanism)
        for assign in (False, True):
            with torch.device("meta"):
                other = make(cls, causal=causal, seed=7)
            if not assign:
                other.to_empty(device="cpu")
                for buffer in other.buffers():
                    buffer.fill_(UNINITIALISED)
            other.load_state_dict(mechanism.state_dict(), assign=assign)
            label = f"load_state_dict(assign={assign}): ".__add__
            assert_close(other(**inputs), mechanism(**inputs), rtol=0, atol=0, msg=label)
            assert other.penalty().device.type == "cpu", "the penalty is left on the meta device"
            other.update()
