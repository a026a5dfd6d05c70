"""Feature maps phi of the kernel family, whose dot products stand in for attention weights."""
