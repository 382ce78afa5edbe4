"""What can be said of a model without loading it: its parts, its pictures, its needs.

All of it follows from the configuration and the headers of the weight files. Where the model is not
on this machine, these alone are read from the Hub.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import mlx.core as mx

from mlx_qwenvl.engine.options import PREFILL_STEP
from mlx_qwenvl.errors import CheckpointError, OptionError
from mlx_qwenvl.inputs.image import PixelBudget, smart_resize
from mlx_qwenvl.inputs.processor import DEFAULT_MAX_PIXELS, Processor
from mlx_qwenvl.inputs.pyav import find_pyav
from mlx_qwenvl.json_file import read_json
from mlx_qwenvl.models.config import Config
from mlx_qwenvl.models.quantized_cache import PLAIN, KVFormat
from mlx_qwenvl.weights.bundle import MANIFEST, open_bundle
from mlx_qwenvl.weights.describe import Description, describe
from mlx_qwenvl.weights.memory import (
    CHIPS,
    CPU,
    GPU,
    Backend,
    Memory,
    kv_bytes_per_token,
    memory_here,
    memory_needed,
    tokens_per_second,
    weights_read,
)
from mlx_qwenvl.weights.pad import on_metal
from mlx_qwenvl.weights.resolve import local_path, repository_of

KV_8BIT = KVFormat(bits=8)
DEFAULT_CONTEXT = 4096  # tokens, where the model's own limit is no lower


@dataclass(frozen=True)
class Look:
    """A picture as a model takes it.

    Attributes:
        size: (width, height) after resizing, in pixels; None for any that fills the budget.
        tokens: Tokens of the prompt that it takes.
        patches: Patches that the vision tower looks at.
    """

    size: tuple[int, int] | None
    tokens: int
    patches: int


@dataclass(frozen=True)
class Facts:
    """What is told of a model.

    Attributes:
        model: The name that was asked for.
        is_remote: Whether only headers were read, on the Hub.
        description: Its parts.
        weight_files: Bytes of the weight files, those of all variants, by name.
        default: The variant that is taken when none is named, if there are variants.
        variants: Bytes of each variant's tensors; None for one whose files are not here.
        own_budget: Pixels that the checkpoint resizes pictures to lie between.
        budget: The same here, with the default limit or the caller's.
        token_pixels: Pixels of one token.
        look: The picture that memory is computed for.
        context: Tokens of prompt and answer that memory is computed for.
    """

    model: str
    is_remote: bool
    description: Description
    weight_files: dict[str, int]
    default: str | None
    variants: dict[str, int | None]
    own_budget: PixelBudget
    budget: PixelBudget
    token_pixels: int
    look: Look
    context: int

    def memory(self, backend: Backend, kv: KVFormat = PLAIN) -> Memory:
        """What one answer about the picture needs."""
        return memory_needed(
            self.description,
            backend,
            context=self.context,
            patches=self.look.patches,
            prefill_step=PREFILL_STEP,
            kv=kv,
        )

    def to_dict(self) -> dict[str, Any]:
        """Everything as JSON holds it; sizes are in bytes, budgets in tokens."""
        config, needed = self.description.config, self.memory(GPU)
        machine = backend_here()
        here, decoder = memory_here(), find_pyav()
        return {
            "model": self.model,
            "headers_only": self.is_remote,
            "architecture": {
                "decoder": asdict(config.text) | {"head_dim": config.text.head_dim},
                "vision_tower": asdict(config.vision) | {"head_dim": config.vision.head_dim},
            },
            "parameters": self.description.parameters,
            "bytes": self.description.stored_bytes,
            "bits_per_weight": self.description.bits_per_weight,
            "parts": [
                {
                    "name": part.name,
                    "parameters": part.parameters,
                    "bytes": part.stored_bytes,
                    "bits_per_weight": part.bits_per_weight,
                    "formats": dict(part.formats),
                    "dense": list(part.dense),
                }
                for part in self.description.parts
            ],
            "weight_files": self.weight_files,
            "disk_bytes": sum(self.weight_files.values()),
            "default_variant": self.default,
            "variants": self.variants,
            "pixels": {
                "token_pixels": self.token_pixels,
                "checkpoint_tokens": self.tokens(self.own_budget),
                "tokens": self.tokens(self.budget),
                "image": asdict(self.look),
            },
            "memory": {
                "context": self.context,
                **asdict(needed),
                "total": needed.total,
                "kv_bytes_per_token": kv_bytes_per_token(config, GPU),
                "kv_cache_8bit": self.memory(GPU, KV_8BIT).kv_cache,
                "kv_bytes_per_token_8bit": kv_bytes_per_token(config, GPU, KV_8BIT),
            },
            "machine": {
                "backend": machine.name,
                "memory": here,
                "needed": self.memory(machine).total,
                "fits": self.memory(machine).total <= here,
                "pyav": decoder.version or None,
                "decodes_videos": not decoder.fault,
            },
            "ceilings": {
                "measured": False,
                "weights_read_per_token": weights_read(self.description),
                "tokens_per_second": {
                    chip: {
                        "bandwidth": round(bandwidth * 1e9),
                        "empty": tokens_per_second(self.description, 0, bandwidth),
                        "at_context": tokens_per_second(self.description, self.context, bandwidth),
                    }
                    for chip, bandwidth in CHIPS.items()
                },
            },
        }

    def tokens(self, budget: PixelBudget) -> tuple[int, int]:
        """Least and most tokens of a picture."""
        least, most = budget.min_pixels, budget.max_pixels
        return -(-least // self.token_pixels), most // self.token_pixels


def find_facts(
    name: str,
    *,
    variant: str | None = None,
    context: int | None = None,
    image: tuple[int, int] | None = None,
    max_pixels: int | None = None,
) -> Facts:
    """Look at a model.

    Args:
        name: `demo`, a folder, a single file, a short name or a Hugging Face name.
        variant: Which of several quantizations; by default the model's own default.
        context: Tokens of prompt and answer; by default 4,096, or the model's limit if lower.
        image: (width, height) of a picture in pixels; by default one that fills the budget.
        max_pixels: Most pixels of a picture after resizing.

    Raises:
        ModelNotFound: The name leads to no model.
        CheckpointError: The model is incomplete, damaged or of another family.
        OptionError: There is no such variant, or the model has no such context.
        MediaError: The picture is too elongated.
    """
    with located(name, variant) as (path, is_remote):
        with open_bundle(path, variant) as bundle:
            config = Config.from_folder(bundle.folder)
            processor = Processor.from_folder(bundle.folder)
            description = describe(config, bundle.tensors)
            files = {tensor.file for tensor in bundle.tensors.values()}
            default, names = _variants(bundle.folder)
        variants: dict[str, int | None] = {}
        for other in names:
            try:
                with open_bundle(path, other) as bundle:
                    variants[other] = sum(t.nbytes for t in bundle.tensors.values())
                    files |= {tensor.file for tensor in bundle.tensors.values()}
            except CheckpointError:  # nothing but the default was downloaded
                variants[other] = None
        base = path if path.is_dir() else path.parent
        sizes = {file.relative_to(base).as_posix(): file.stat().st_size for file in sorted(files)}
    budget = _budget(processor.budget, max_pixels)
    look = _look(processor, budget, image)
    return Facts(
        model=name,
        is_remote=is_remote,
        description=description,
        weight_files=sizes,
        default=default,
        variants=variants,
        own_budget=processor.budget,
        budget=budget,
        token_pixels=processor.geometry.factor**2,
        look=look,
        context=_context(config, context, 0 if image is None else look.tokens),
    )


@contextmanager
def located(name: str, variant: str | None) -> Iterator[tuple[Path, bool]]:
    """A model's folder or file, and whether it stays on the Hub, its headers apart.

    Raises:
        ModelNotFound: The name leads to no model.
    """
    path = local_path(name)
    if path is not None:
        yield path, False
        return
    repository = repository_of(name)
    # Imported late: the Hub's client costs a tenth of a second that a folder does not need.
    from mlx_qwenvl.weights.hub import cached
    from mlx_qwenvl.weights.remote import skeleton

    path = cached(repository, variant)
    if path is not None:
        yield path, False
        return
    with skeleton(repository) as path:
        yield path, True


def backend_here() -> Backend:
    """How this machine computes."""
    return CPU if mx.default_device() == mx.cpu else replace(GPU, is_metal=on_metal())


def _variants(folder: Path) -> tuple[str | None, list[str]]:
    """The default variant of a folder and all of them, as its manifest has them."""
    if not (folder / MANIFEST).exists():
        return None, []
    manifest = read_json(folder / MANIFEST)
    variants = manifest.get("variants")
    return manifest.get("default"), list(variants) if isinstance(variants, dict) else []


def _budget(own: PixelBudget, max_pixels: int | None) -> PixelBudget:
    """The limits as `Processor.open` sets them."""
    most = min(DEFAULT_MAX_PIXELS, own.max_pixels) if max_pixels is None else max_pixels
    return PixelBudget(min(own.min_pixels, most), most)


def _look(processor: Processor, budget: PixelBudget, image: tuple[int, int] | None) -> Look:
    geometry = processor.geometry
    if image is None:
        tokens = max(1, budget.max_pixels // geometry.factor**2)
        return Look(None, tokens, tokens * geometry.merge_size**2)
    width, height = image
    new_height, new_width = smart_resize(
        height, width, geometry.factor, budget.min_pixels, budget.max_pixels
    )
    tokens = new_height * new_width // geometry.factor**2
    return Look((new_width, new_height), tokens, tokens * geometry.merge_size**2)


def _context(config: Config, context: int | None, image_tokens: int) -> int:
    limit = config.text.max_position_embeddings
    if context is None:
        context = min(limit, max(DEFAULT_CONTEXT, image_tokens))
    if not 1 <= context <= limit:
        raise OptionError(f"a context of {context} tokens; this model has 1 to {limit}")
    if context < image_tokens:
        raise OptionError(f"the picture takes {image_tokens} tokens, the context has {context}")
    return context
