"""Which tensor goes into which file: variants share what is equal, and files have a bounded size.

A piece is a set of tensors that the same variants have. The pieces of the default variant stand at
the top of the folder, as in any MLX folder; the others in `variants/`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

from mlx_qwenvl.weights.bundle import FILES_PREFIX
from mlx_qwenvl.weights.files import StoredTensor
from mlx_qwenvl.weights.names import to_mlx
from mlx_qwenvl.weights.plan import PATCH_EMBED, Plan
from mlx_qwenvl.weights.recipes import Format

from .shard import Shard
from .tensors import Beside, Copy, Dequantize, Job, Quantize, Rules, SmallFile

SHARD_BYTES = 5 * 10**9  # most bytes of one file, as the Hub advises
TORCH_TO_MLX = (0, 2, 3, 4, 1)  # a convolution's weights [out, in, t, h, w] with channels last
METADATA = {"format": "mlx"}

TensorJob: TypeAlias = Copy | Quantize | Dequantize | Beside


@dataclass(frozen=True)
class Variant:
    """One of the quantizations that are written.

    Attributes:
        name: What it is called.
        plan: What it does to every module.
        learned: Tensors that were learned for it, by their names here.
    """

    name: str
    plan: Plan
    learned: Mapping[str, StoredTensor]


@dataclass(frozen=True)
class Piece:
    """What some variants have in common.

    Attributes:
        variants: Their names.
        jobs: The tensors.
    """

    variants: tuple[str, ...]
    jobs: tuple[TensorJob, ...]

    @property
    def name(self) -> str:
        """The variants' names, joined."""
        return "+".join(self.variants)

    @property
    def nbytes(self) -> int:
        """Bytes of its tensors."""
        return sum(spec.nbytes for job in self.jobs for spec in job.specs)


def make_pieces(
    tensors: Mapping[str, StoredTensor],
    variants: Sequence[Variant],
    rules: Rules,
    *,
    is_torch: Callable[[StoredTensor], bool],
) -> list[Piece]:
    """Sort all tensors by the variants that have them in the same form.

    Args:
        tensors: The source's, by their names here.
        variants: The default comes first.
        rules: What holds for all tensors.
        is_torch: Whether the patch embedding has its axes in PyTorch's order.
    """
    jobs: dict[tuple[str, ...], list[TensorJob]] = {}
    for name, tensor in tensors.items():
        path = name.removesuffix(".weight")
        forms: dict[tuple[Format | None, str | None], list[Variant]] = {}
        for variant in variants:
            form = variant.plan.formats.get(path) if path != name else None
            # What a variant learned fits its own other layers alone, and is never shared.
            learner = variant.name if name in variant.learned else None
            forms.setdefault((form, learner), []).append(variant)
        for (form, learner), same in forms.items():
            job: TensorJob
            if form is None:
                turned = name == f"{PATCH_EMBED}.weight" and is_torch(tensor)
                job = Copy(to_mlx(name), tensor, rules, TORCH_TO_MLX if turned else None)
            else:
                learned = _learned(same[0], path) if learner is not None else None
                job = Quantize(to_mlx(path), tensor, form, rules, learned)
            jobs.setdefault(tuple(v.name for v in same), []).append(job)
    default = variants[0].name
    # What all have comes first; within the default's pieces the widest shared one leads.
    keys = sorted(jobs, key=lambda names: (default not in names, -len(names), names))
    return [Piece(names, tuple(jobs[names])) for names in keys]


def _learned(variant: Variant, path: str) -> dict[str, StoredTensor]:
    parts = ("weight", "scales", "biases")
    return {part: variant.learned[f"{path}.{part}"] for part in parts}


def folder_shards(pieces: Sequence[Piece], default: str) -> dict[str, list[Shard]]:
    """Files of a folder, by the name of their piece."""
    at_top = [piece for piece in pieces if default in piece.variants]
    cut = {piece.name: _cut(piece.jobs) for piece in pieces}
    total = sum(len(cut[piece.name]) for piece in at_top)
    shards: dict[str, list[Shard]] = {}
    number = 0
    for piece in pieces:
        parts, shards[piece.name] = cut[piece.name], []
        for index, jobs in enumerate(parts, start=1):
            if piece in at_top:
                number += 1
                name = f"model-{number:05}-of-{total:05}.safetensors"
            else:
                name = f"variants/{piece.name}/model-{index:05}-of-{len(parts):05}.safetensors"
            shards[piece.name].append(Shard(name, jobs, METADATA))
    return shards


def single_shard(name: str, pieces: Sequence[Piece], small_files: Mapping[str, bytes]) -> Shard:
    """The one file that holds all pieces and the small files."""
    jobs: list[Job] = [SmallFile(FILES_PREFIX + n, content) for n, content in small_files.items()]
    for piece in pieces:
        prefix = piece_prefix(piece, pieces)
        jobs += [replace(job, name=prefix + job.name) for job in piece.jobs]
    return Shard(name, jobs, METADATA, digests_itself=True)


def piece_prefix(piece: Piece, pieces: Sequence[Piece]) -> str:
    """What stands before the names of a piece's tensors in a single file.

    Nothing for what all variants share, and so for everything where there is but one.
    """
    everyone = {name for other in pieces for name in other.variants}
    return "" if set(piece.variants) == everyone else f"{piece.name}/"


def _cut(jobs: Sequence[TensorJob]) -> list[list[Job]]:
    """Jobs in groups that fit a file."""
    groups: list[list[Job]] = [[]]
    size = 0
    for job in jobs:
        nbytes = sum(spec.nbytes for spec in job.specs)
        if groups[-1] and size + nbytes > SHARD_BYTES:
            groups.append([])
            size = 0
        groups[-1].append(job)
        size += nbytes
    return groups
