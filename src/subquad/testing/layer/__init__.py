"""The checks of a whole layer's contract."""
