"""Bugs planted in what is done in place of waiting for the device."""

from mutants.mutant import Mutant

MUTANTS = [
    Mutant(
        "cosformer",
        "never_waits_for_the_device",
        "a refusal reads its number first",
        "require_at_most",
        "if must_not_look(most):",
        "if False:",
    ),
    Mutant(
        "routing",
        "never_waits_for_the_device",
        "rows with equal numbers are looked for",
        "_largest",
        "if not may_wait(x):",
        "if False:",
    ),
    Mutant(
        "poolingformer",
        "never_waits_for_the_device",
        "what looks at numbers serves all devices",
        "why_not_parallel",
        "if may_wait(x) and wanted",
        "if wanted",
    ),
    Mutant(
        "reformer",
        "never_waits_for_the_device",
        "blocks in which nobody sees anybody are looked for",
        "Chunks.hidden",
        "if last_n_only:",
        "if hidden.all() or last_n_only:",
    ),
    Mutant(
        "reformer",
        "never_waits_for_the_device",
        "sizes of hashes are copied to the device at each call",
        "_hashed",
        "rotated = (tokens @",
        "size = torch.tensor(size, device=x.device) if isinstance(size, int) else size\n"
        "            rotated = (tokens @",
    ),
]
