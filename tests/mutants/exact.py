"""Bugs planted in softmax attention, and in what all mechanisms share."""

from mutants.mutant import Mutant

SOFTMAX = "mechanisms/softmax.py"

MUTANTS = [
    Mutant(
        "softmax",
        "matches_definition",
        "causality is forgotten",
        SOFTMAX,
        "is_causal=self.causal",
        "is_causal=False",
    ),
    Mutant(
        "softmax",
        "matches_definition",
        "scores are not scaled",
        SOFTMAX,
        "return F.scaled_dot_product_attention(q, k, v, is_causal=self.causal)",
        "return F.scaled_dot_product_attention(q, k, v, is_causal=self.causal, scale=1.0)",
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
        "cross=self.traits.cross and not self.causal",
        "cross=self.traits.cross",
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
        "inputs.py",
        "(batch, heads, tokens, widths[name])",
        "(batch, heads, x.shape[2], widths[name])",
    ),
    Mutant(
        "linear",
        "refuses_inputs_of_other_dims",
        "tokens and heads in each other's place are taken",
        "inputs.py",
        "(batch, heads, tokens, widths[name])",
        "(batch, q.shape[1], tokens, widths[name])",
    ),
    Mutant(
        "softmax",
        "refuses_inputs_of_other_dims",
        "a chunk of a stream is not looked at",
        "mechanism.py",
        '("definition", "forward", "step")',
        '("definition", "forward")',
    ),
]
