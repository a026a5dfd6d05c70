"""What subquad claims of its speed and memory, measured beside its rivals: `python -m benchmarks --help`."""
