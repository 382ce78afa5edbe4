"""`mlx-qwenvl completion`."""
