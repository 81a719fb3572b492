"""What kernels are predicted to take."""
