"""What operators share: checks, precision, memory, packing, graphs, random numbers."""
