"""Mechanisms for tests of what stands around them: where a file has several names, the first is enough."""

from subquad import catalog

_FIRST: dict[str, str] = {}
for _name, _cls in catalog().items():
    _FIRST.setdefault(_cls.__module__, _name)
ONE_OF_EACH_FILE = sorted(_FIRST.values())
STREAMING = [name for name in ONE_OF_EACH_FILE if catalog()[name].traits.state]
FORMS = [  # each with whether it is causal
    (name, causal)
    for name in ONE_OF_EACH_FILE
    for causal, form in ((False, catalog()[name].traits.bidirectional), (True, catalog()[name].traits.causal))
    if form
]
