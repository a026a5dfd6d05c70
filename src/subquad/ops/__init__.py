"""The few shared kernels beneath the mechanisms. They know tensors, and no mechanism."""
