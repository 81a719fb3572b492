"""The structure of kernels: tile programs, plans, sources."""
