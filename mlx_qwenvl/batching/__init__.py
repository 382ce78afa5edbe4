"""One question about many pictures: what to ask, what is done already, and where answers go."""

from mlx_qwenvl.batching.ask import Answer, ask_all

__all__ = ["Answer", "ask_all"]
