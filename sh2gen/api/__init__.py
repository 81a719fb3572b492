"""The whole chain, from a description to verified and measured kernels."""
