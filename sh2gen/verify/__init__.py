"""Whether kernels are right."""
