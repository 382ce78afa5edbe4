"""`mlx-qwenvl doctor`."""
