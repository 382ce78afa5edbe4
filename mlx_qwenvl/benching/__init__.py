"""What `mlx-qwenvl bench` measures, and how it tells it."""
