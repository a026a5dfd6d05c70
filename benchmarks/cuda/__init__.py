"""The suite on a card: correctness of every kernel, then times beside fused softmax and other packages."""
