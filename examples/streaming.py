"""An answer while it is written: `python examples/streaming.py`."""

from pathlib import Path

from mlx_qwenvl import load

PICTURES = Path(__file__).parent / "images"

vlm = load("demo")
for chunk in vlm.stream("Describe it.", images=[PICTURES / "three.png"], temperature=0):
    print(chunk.text, end="", flush=True)
    if chunk.usage is not None and chunk.timings is not None:  # the last one
        count, rate = chunk.usage.completion_tokens, chunk.timings.completion_tokens_per_s
        print(f"\n{count} tokens, {rate:.0f} a second")
