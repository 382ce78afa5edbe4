"""One question about a picture: `python examples/python_api.py`."""

from pathlib import Path

from mlx_qwenvl import load

PICTURES = Path(__file__).parent / "images"

vlm = load("demo")  # or "2b", a folder, owner/model
reply = vlm.generate(
    "What is shown in this image?", images=[PICTURES / "shapes.png"], temperature=0
)

print(reply)
print(f"{reply.usage.image_tokens} of {reply.usage.prompt_tokens} prompt tokens are the picture's")
print(f"the first token came after {reply.timings.time_to_first_token_s:.2f} s")
