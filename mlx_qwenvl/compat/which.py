"""`Which`: what is loaded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlx_qwenvl.compat.names import ModelDType, VisionArchitecture
from mlx_qwenvl.compat.said import ignored, refused
from mlx_qwenvl.errors import OptionError
from mlx_qwenvl.weights.recipes import read_recipe

_CONVERT = "`mlx-qwenvl convert --quantize 4bit,8bit`"
_OWN_FOLDER = "is not supported; it is read from the model's folder"
_LEARNED = "is not supported; `mlx-qwenvl convert --calibrate` learns the rounding, once"
_NO_SLICES = "is not supported; no member of the family has slices"


class Which:
    """The kinds of models; of mistral.rs's only those with eyes are here."""

    @dataclass(frozen=True)
    class VisionPlain:
        """One of the family: a folder, a single file, a short name such as `2b`, or the hub's.

        What becomes of each option is told in `docs/compat.md`.

        Attributes:
            model_id: Anything that `mlx_qwenvl.load` takes.
            arch: Makes no difference; the model's `config.json` says which member it is.
            topology: A topology of mistral.rs's or ours.
            from_uqff: A stored quantization by its name, such as "q4k" or "8bit".
            dtype: Number format of weights and activations.
            max_edge: Pixels; a picture gets the pixels of a square with this edge at most.
            encoder_cache_memory_bytes: For vision features of earlier pictures, in bytes.
        """

        model_id: str
        arch: VisionArchitecture | None = None
        tokenizer_json: str | None = refused(_OWN_FOLDER)
        topology: str | Path | None = None
        write_uqff: str | Path | None = refused(f"is not supported; {_CONVERT} writes to keep")
        from_uqff: str | Sequence[str] | None = None
        dtype: ModelDType = ModelDType.Auto
        max_edge: int | None = None
        calibration_file: str | Path | None = refused(_LEARNED)
        imatrix: str | None = refused(_LEARNED)
        auto_map_params: Any = ignored("Apple's memory is one; nothing is mapped to devices")
        hf_cache_path: str | None = refused("is not supported; set HF_HUB_CACHE")
        matformer_config_path: str | None = refused(_NO_SLICES)
        matformer_slice_name: str | None = refused(_NO_SLICES)
        organization: Any = ignored("a topology says which parts are quantized")
        encoder_cache_memory_bytes: int | None = None

        @property
        def variant(self) -> str | None:
            """The stored quantization that `from_uqff` chooses, by its name here.

            Raises:
                OptionError: It names a file, or no quantization.
            """
            if self.from_uqff is None:
                return None
            given = self.from_uqff
            names = [given] if isinstance(given, (str, Path)) else list(given)
            if len(names) == 1 and not str(names[0]).endswith(".uqff"):
                return read_recipe(str(names[0])).name
            raise OptionError(
                "from_uqff names UQFF files, which MLX cannot read; expected the name of a "
                f"quantization that the model's folder holds: {_CONVERT} writes several",
                "from_uqff",
            )

        @property
        def max_pixels(self) -> int | None:
            """Most pixels of a picture: those of a square with the edge `max_edge`.

            mistral.rs makes its pictures such squares, and fills up with black.
            """
            return None if self.max_edge is None else self.max_edge**2

    MultimodalPlain = VisionPlain
