"""`mlx-qwenvl chat`."""
