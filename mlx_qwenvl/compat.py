"""`mlx-qwenvl compat`."""
