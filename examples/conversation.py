"""A conversation about two pictures: `python examples/conversation.py`.

What was computed for a turn is kept: the second question about a picture does not look at it again.
"""

from pathlib import Path

from mlx_qwenvl import load

PICTURES = Path(__file__).parent / "images"

chat = load("demo").chat()
for question, pictures in [
    ("What is shown in this image?", [PICTURES / "star.png"]),
    ("What color is it?", []),
    ("What number is this?", [PICTURES / "number.png"]),
]:
    reply = chat.ask(question, images=pictures, temperature=0)
    computed = reply.usage.prompt_tokens - reply.usage.cached_tokens
    print(f"> {question}\n{reply}")
    print(f"({computed} of {reply.usage.prompt_tokens} prompt tokens were computed)")
