"""Several quantizations of a model in one folder: `python examples/several_quantizations.py`.

What they share, such as the vision tower, is stored once. The command line is

    mlx-qwenvl convert --model demo --output all --quantize 4bit,6bit,8bit
"""

import subprocess
import sys
import tempfile
from pathlib import Path

from mlx_qwenvl import load

PICTURE = Path(__file__).parent / "images" / "shapes.png"

with tempfile.TemporaryDirectory() as scratch:
    folder = Path(scratch) / "all"
    convert = [
        "convert",
        "--model",
        "demo",
        "--output",
        str(folder),
        "--quantize",
        "4bit,6bit,8bit",
    ]
    subprocess.run([sys.executable, "-m", "mlx_qwenvl", *convert], check=True)
    for variant in ("4bit", "6bit", "8bit"):
        vlm = load(folder, variant=variant)
        reply = vlm.generate("What is shown in this image?", images=[PICTURE], temperature=0)
        print(f"{variant}: {reply}")
