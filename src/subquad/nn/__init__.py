"""Layers and models around any mechanism: heads, positions, blocks, encoder, classifier."""
