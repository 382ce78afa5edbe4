"""Parts of a model quantized differently, as topology.yml says: `python examples/topology.py`."""

from pathlib import Path

from mlx_qwenvl import load

HERE = Path(__file__).parent

vlm = load("demo", topology=HERE / "topology.yml")
layers = vlm.model.model.layers
print(f"embedding: {vlm.model.model.embed_tokens.bits} bits")
for index, layer in enumerate(layers):
    print(f"layer {index}: {layer.mlp.down_proj.bits} bits")
print(
    vlm.generate(
        "What is shown in this image?", images=[HERE / "images" / "shapes.png"], temperature=0
    )
)
