"""Records what Transformers' Qwen2-VL image processor makes of pictures that a seed draws.

`images.json` holds hashes only: `tests/test_image.py` draws the same pictures and must arrive at
the same patches. To record anew, run from the checkout, where Transformers is installed:

    python -m tests.golden.record_images

Pillow 13 changed bicubic resizing: one size in five differs from Pillow 12, by one or two levels of
255. Transformers resizes with whatever Pillow is there, so there is one recording for each; a run
replaces the part of the Pillow that it runs with.
"""

from __future__ import annotations

import hashlib
import io
import json
import platform
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import PIL
from PIL import Image

from mlx_qwenvl.inputs.media import open_image

RECORDING = Path(__file__).parent / "images.json"
RESAMPLING = "pillow 13" if int(PIL.__version__.partition(".")[0]) >= 13 else "pillow 11 and 12"

CHECKPOINT_BUDGET = (56 * 56, 12_845_056)  # pixels; preprocessor_config.json of the released models
CLASS_BUDGET = (56 * 56, 28 * 28 * 1280)  # pixels; the processor's own defaults

Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Case:
    """One picture and its pixel budget; `kind` is a key of ENCODERS."""

    name: str
    width: int
    height: int
    budget: tuple[int, int] = CLASS_BUDGET
    kind: str = "png"

    def picture(self) -> Image.Image:
        """Draws, encodes and opens the picture: upright RGB."""
        return open_image(ENCODERS[self.kind](self.width, self.height))


def draw(width: int, height: int, channels: int) -> Pixels:
    """Draws gradients under noise: [height, width, channels] uint8, the same on every platform."""
    count = width * height * channels
    raw = np.random.PCG64([width, height, channels]).random_raw(-(-count // 8))
    noise = raw.astype("<u8", copy=False).view(np.uint8)[:count].reshape(height, width, channels)
    rows, columns = np.ogrid[:height, :width]
    down, across = (160 * rows // height).astype(np.uint8), (60 * columns // width).astype(np.uint8)
    pixels: Pixels = (down + across)[:, :, None] + (noise >> 3)  # at most 159 + 59 + 31
    return pixels


def encode(image: Image.Image, encoder: str, **options: Any) -> bytes:
    """Returns the picture as a file of the given format."""
    file = io.BytesIO()
    image.save(file, encoder, **options)
    return file.getvalue()


def _png(mode: str) -> Callable[[int, int], bytes]:
    return lambda width, height: encode(_drawn(mode, width, height), "PNG")


def _drawn(mode: str, width: int, height: int) -> Image.Image:
    pixels = draw(width, height, Image.getmodebands(mode))
    return Image.frombytes(mode, (width, height), pixels.tobytes())


def _palette(width: int, height: int) -> Image.Image:
    image = _drawn("L", width, height).convert("P")
    image.putpalette(draw(256, 1, 3).tobytes())
    return image


def _with_orientation(width: int, height: int) -> bytes:
    exif = Image.Exif()
    exif[274] = 6  # the camera was held upright
    return encode(_drawn("RGB", width, height), "JPEG", quality=90, exif=exif)


def _animation(width: int, height: int) -> bytes:
    first = _palette(width, height)
    rest = first.transpose(Image.Transpose.ROTATE_180)
    return encode(first, "GIF", save_all=True, append_images=[rest], duration=40)


def _deep_grey(width: int, height: int) -> bytes:
    grey = draw(width, height, 1)[:, :, 0].astype(np.uint16)
    return encode(Image.fromarray(grey * 256 + grey[::-1]), "PNG")


ENCODERS: dict[str, Callable[[int, int], bytes]] = {
    "png": _png("RGB"),
    "grey": _png("L"),
    "grey and alpha": _png("LA"),
    "alpha": _png("RGBA"),
    "palette": lambda w, h: encode(_palette(w, h), "PNG"),
    "palette and alpha": lambda w, h: encode(_palette(w, h), "PNG", transparency=bytes(range(256))),
    "one colour transparent": lambda w, h: encode(
        Image.fromarray(draw(w, h, 3) & 0xC0), "PNG", transparency=(128, 64, 128)
    ),
    "one bit": lambda w, h: encode(Image.fromarray(draw(w, h, 1)[:, :, 0] > 99), "PNG"),
    "16 bits": _deep_grey,
    "cmyk": lambda w, h: encode(_drawn("CMYK", w, h), "TIFF"),
    "floats": lambda w, h: encode(
        Image.fromarray(draw(w, h, 1)[:, :, 0] / np.float32(255)), "TIFF"
    ),
    "jpeg on its side": _with_orientation,
    "animated gif": _animation,
    "lossless webp": lambda w, h: encode(_drawn("RGB", w, h), "WEBP", lossless=True),
    "bmp": lambda w, h: encode(_drawn("RGB", w, h), "BMP"),
}

CASES = [
    Case("1x1", 1, 1),
    Case("1x1 within one token", 1, 1, (1, 28 * 28)),
    Case("1x2", 1, 2),
    Case("27x27", 27, 27),
    Case("28x28", 28, 28),
    Case("29x29", 29, 29),
    Case("28x28 kept", 28, 28, (28 * 28, CLASS_BUDGET[1])),
    Case("56x56", 56, 56),
    Case("1x150", 1, 150),
    Case("150x1", 150, 1),
    Case("3x300", 3, 300),
    Case("5x995, 199:1", 5, 995),
    Case("3980x20, 199:1", 3980, 20),
    Case("13x2600, 200:1, grown branch shrinks", 13, 2600),
    Case("42x70, halves", 42, 70),
    Case("98x126, halves", 98, 126),
    Case("640x480", 640, 480),
    Case("640x480 in 256 tokens", 640, 480, (56 * 56, 256 * 28 * 28)),
    Case("640x480 in one token", 640, 480, (1, 28 * 28)),
    Case("640x480 of 1280 tokens at least", 640, 480, (1280 * 28 * 28, 16384 * 28 * 28)),
    Case("1920x1080", 1920, 1080, kind="bmp"),
    Case("1920x1080, checkpoint budget", 1920, 1080, CHECKPOINT_BUDGET),
    Case("4032x3024", 4032, 3024, kind="bmp"),
    Case("3024x4032 in 256 tokens", 3024, 4032, (56 * 56, 256 * 28 * 28), "bmp"),
    Case("1120x896 stays", 1120, 896),
    Case("560x560, at most - 1", 560, 560, (56 * 56, 560 * 560 + 1)),
    Case("560x560, at most", 560, 560, (56 * 56, 560 * 560)),
    Case("560x560, at most + 1", 560, 560, (56 * 56, 560 * 560 - 1)),
    Case("112x112, at least + 1", 112, 112, (112 * 112 - 1, 10**6)),
    Case("112x112, at least", 112, 112, (112 * 112, 10**6)),
    Case("112x112, at least - 1", 112, 112, (112 * 112 + 1, 10**6)),
    Case("100x70, one size allowed", 100, 70, (84 * 84, 84 * 84)),
    *(Case(kind, 150, 101, kind=kind) for kind in ENCODERS if kind != "png"),
]


def sizes() -> list[tuple[int, int, int, int]]:
    """Returns (height, width, min_pixels, max_pixels) for the record of smart_resize."""
    raw = [int(number) for number in np.random.PCG64(7).random_raw(400)]
    budgets = [CLASS_BUDGET, CHECKPOINT_BUDGET, (1, 784), (200_704, 200_704), (10**6, 10**7)]
    pairs = [(14 * i, 14 * i + 14) for i in range(1, 20)]
    pairs += [
        (1 + a % 2 ** (1 + b % 13), 1 + b % 5000) for a, b in zip(raw[::2], raw[1::2], strict=True)
    ]
    pairs = [pair for pair in pairs if max(pair) <= 200 * min(pair)]
    return [(*pair, *budgets[i % len(budgets)]) for i, pair in enumerate(pairs)]


def sha256(array: Pixels) -> str:
    """Returns the hash of an array's bytes, in C order."""
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()


def record() -> dict[str, Any]:
    """Runs every case through Transformers, and keeps what another Pillow recorded."""
    import transformers
    from transformers.models.qwen2_vl import image_processing_pil_qwen2_vl as reference

    old = json.loads(RECORDING.read_text()) if RECORDING.exists() else {}
    versions = {
        "python": platform.python_version(),
        "transformers": transformers.__version__,
        "pillow": PIL.__version__,
        "numpy": np.__version__,
    }
    cases: dict[str, Any] = {}
    for case in CASES:
        smallest, largest = case.budget
        processor = reference.Qwen2VLImageProcessorPil(
            size={"shortest_edge": smallest, "longest_edge": largest}
        )
        picture = case.picture()
        made = processor(images=[picture], return_tensors="np")
        frames = np.asarray(made["pixel_values"], np.float64).reshape(-1, 3, 2, 14 * 14)
        mean = np.asarray(processor.image_mean)[:, None, None]
        std = np.asarray(processor.image_std)[:, None, None]
        levels = (frames * std + mean) * 255
        pixels = np.rint(levels)
        assert abs(levels - pixels).max() < 1e-3, case.name
        assert (pixels[:, :, 0] == pixels[:, :, 1]).all(), case.name
        patches = pixels[:, :, 0].astype(np.uint8).reshape(len(pixels), 3 * 14 * 14)
        cases[case.name] = {
            "source_sha256": sha256(np.asarray(picture)),
            "grid_thw": np.asarray(made["image_grid_thw"])[0].tolist(),
            "patches_sha256": {
                **old.get("cases", {}).get(case.name, {}).get("patches_sha256", {}),
                RESAMPLING: sha256(patches),
            },
        }
    return {
        "recorded_with": {**old.get("recorded_with", {}), RESAMPLING: versions},
        "cases": cases,
        "smart_resize": [
            [*size, *reference.smart_resize(size[0], size[1], 28, size[2], size[3])]
            for size in sizes()
        ],
    }


if __name__ == "__main__":
    recording = record()
    parts = [f'"recorded_with": {json.dumps(recording["recorded_with"])}']
    rows = [f"{json.dumps(name)}: {json.dumps(case)}" for name, case in recording["cases"].items()]
    parts.append('"cases": {\n  ' + ",\n  ".join(rows) + "\n }")
    rows = [json.dumps(row) for row in recording["smart_resize"]]
    parts.append('"smart_resize": [\n  ' + ",\n  ".join(rows) + "\n ]")
    RECORDING.write_text("{\n " + ",\n ".join(parts) + "\n}\n")
    print(f"{RECORDING.name}: {len(recording['cases'])} pictures")
