"""`mlx-qwenvl batch`."""
