"""The same model with fewer bits, quantized while it is loaded: `python examples/quantize_in_place.py`.

Nothing is written. What a recipe costs is measured in docs/quantization.md; names of llama.cpp and
mistral.rs, such as Q4K, are understood.
"""  # noqa: E501

from pathlib import Path

from mlx.utils import tree_flatten

from mlx_qwenvl import load

PICTURE = Path(__file__).parent / "images" / "shapes.png"

for recipe in (None, "8bit", "4bit"):
    vlm = load("demo", quantize=recipe)
    size = sum(array.nbytes for _, array in tree_flatten(vlm.model.parameters()))
    reply = vlm.generate("What is shown in this image?", images=[PICTURE], temperature=0)
    print(f"{recipe or 'as stored':<10}{size / 1e6:6.2f} MB  {reply}")
