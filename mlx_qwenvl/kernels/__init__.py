"""Fused Metal kernels, one a file, each beside the plain MLX that computes the same: its twin."""
