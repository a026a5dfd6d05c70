"""Bugs planted in softmax attention, and in what all mechanisms share."""

from mutants.mutant import Mutant

SOFTMAX = "mechanisms/softmax.py"

MUTANTS = [
    Mutant(
        "softmax",
        "matches_definition",
        "causality is forgotten",
        SOFTMAX,
        "k, v, causal=self.causal",
        "k, v, causal=False",
    ),
    Mutant(
        "softmax",
        "matches_definition",
        "scores are not scaled",
        SOFTMAX,
        "return attention(q, k, v, causal=self.causal)",
        "return attention(q * q.shape[-1] ** 0.5, k, v, causal=self.causal)",
    ),
    Mutant(
        "softmax",
        "padding_is_invisible",
        "the stream forgets the mask of earlier chunks",
        SOFTMAX,
        "valid = torch.cat([state.valid, valid], 1)",
        "valid = torch.cat([torch.ones_like(state.valid), valid], 1)",
    ),
    Mutant(
        "softmax",
        "state_growth",
        "a cache that grows is called bounded",
        SOFTMAX,
        'state="growing"',
        'state="bounded"',
    ),
    Mutant(
        "softmax",
        "refuses_what_it_lacks",
        "the bidirectional form streams",
        SOFTMAX,
        "        if not self.causal:\n            return super().step(q, k, v, valid=valid, state=state)\n",
        "",
    ),
    Mutant(
        "softmax",
        "refuses_what_it_lacks",
        "a causal form takes fewer queries than keys",
        "mechanism.py",
        "(self.causal or not self.traits.cross)",
        "not self.traits.cross",
    ),
    Mutant(
        "softmax",
        "work",
        "a claim of linear cost",
        SOFTMAX,
        "cost=2.0",
        "cost=1.0",
    ),
    Mutant(
        "softmax",
        "compiles",
        "control flow that depends on values",
        SOFTMAX,
        "        seen = valid[:, None, None, :]\n        if",
        "        seen = valid[:, None, None, :]\n        if valid.all():\n            q = 1 * q\n        if",
    ),
    Mutant(
        "linformer",
        "refuses_inputs_that_do_not_go_together",
        "fewer values than keys are taken",
        "ops/padding.py",
        "    require_together(q, *keyed)\n",
        "",
    ),
    Mutant(
        "linear",
        "refuses_inputs_that_do_not_go_together",
        "values of one head are taken for those of all",
        "ops/shapes.py",
        "if x.shape != wanted:",
        "if x.shape[2:] != wanted[2:]:",
    ),
]
