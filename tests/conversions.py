"""What tests of the converter share: comparing folders, tensors and models bit for bit."""

from __future__ import annotations

import hashlib
import json
import math
import os
from pathlib import Path

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten

from convert.tensors import ITEM_BYTES
from mlx_qwenvl import QwenVL
from mlx_qwenvl.inputs.processor import Processor
from mlx_qwenvl.models.config import Config
from mlx_qwenvl.models.families import build
from mlx_qwenvl.models.model import Model
from mlx_qwenvl.weights.bundle import open_bundle
from mlx_qwenvl.weights.load import load_model
from mlx_qwenvl.weights.plan import PATCH_EMBED, Plan, make_plan, vision_recipe
from mlx_qwenvl.weights.recipes import read_recipe
from tests.command_lines import run
from tests.faults import change_config
from tests.golden.tiny import picture, write_checkpoint
from tests.golden.tiny_files import EMBED, HEAD_DIM, PATCH, TEMPORAL_PATCH

QUESTION, PICTURE = "What is this?", picture(31, 84, 84)


def answer(vlm: QwenVL) -> np.ndarray:
    """Logits after a question about a picture, [V]."""
    return vlm.logits(QUESTION, images=[PICTURE])


def contents(path: Path) -> dict[str, str]:
    """Digests of all that lies in a folder, hidden files too, or of a file, by their names."""
    files = [path] if path.is_file() else sorted(f for f in path.rglob("*") if f.is_file())
    return {
        "" if file == path else file.relative_to(path).as_posix(): hashlib.sha256(
            file.read_bytes()
        ).hexdigest()
        for file in files
    }


def weights_of(path: Path) -> dict[str, str]:
    """The same of the files of weights alone."""
    return {name: digest for name, digest in contents(path).items() if "safetensors" in name}


def tensors_in(path: Path) -> dict[str, mx.array]:
    """All tensors of a file, or of the files at the top of a folder, by their stored names."""
    found: dict[str, mx.array] = {}
    for file in [path] if path.is_file() else sorted(path.glob("*.safetensors")):
        loaded = mx.load(str(file))
        assert isinstance(loaded, dict) and not found.keys() & loaded.keys()
        found |= loaded
    return found


def bits_of(array: mx.array) -> tuple[str, tuple[int, ...], bytes]:
    """All that there is to an array."""
    mx.eval(array)
    flat = mx.contiguous(array).reshape(-1).view(mx.uint8)
    return str(array.dtype), array.shape, np.asarray(flat).tobytes()


def assert_same_weights(found: Model, expected: Model) -> None:
    """Two models have the same parameters, bit for bit."""
    ours, theirs = (dict(tree_flatten(model.parameters())) for model in (found, expected))
    assert ours.keys() == theirs.keys()
    differing = [name for name in ours if bits_of(ours[name]) != bits_of(theirs[name])]
    assert differing == []


def quantized_at_load(
    source: Path,
    recipe: str,
    *,
    group_size: int | None = None,
    vision_bits: int | None = None,
) -> Model:
    """A dense checkpoint that is quantized while it is loaded, with all that a plan can be."""
    with open_bundle(source) as bundle:
        plan = plan_for(source, recipe, group_size=group_size, vision_bits=vision_bits)
        config, processor = Config.from_folder(source), Processor.from_folder(source)
        return load_model(bundle.tensors, config, processor.normalization, plan=plan)


def plan_for(
    source: Path, recipe: str, *, group_size: int | None = None, vision_bits: int | None = None
) -> Plan:
    """What is to be done to every module of a checkpoint."""
    return make_plan(
        Config.from_folder(source),
        read_recipe(recipe, group_size),
        vision=vision_recipe(vision_bits, group_size),
    )


def write_hollow_checkpoint(
    folder: Path, *, layers: int, vocab_size: int, hidden: int, dtype: str, shards: int
) -> int:
    """Write a larger checkpoint of zeros that takes no room on the disk.

    Args:
        folder: Where to.
        layers: Layers of the decoder.
        vocab_size: Rows of the embedding.
        hidden: Width of the decoder, a multiple of 256.
        dtype: Safetensors dtype, "F32" or "BF16".
        shards: Number of files.

    Returns:
        Bytes of the weights.
    """
    write_checkpoint(folder)
    (folder / "model.safetensors").unlink()
    change_config(
        folder,
        num_hidden_layers=layers,
        vocab_size=vocab_size,
        hidden_size=hidden,
        intermediate_size=4 * hidden,
        num_attention_heads=hidden // HEAD_DIM,
        num_key_value_heads=hidden // HEAD_DIM // 2,
        vision_config=json.loads((folder / "config.json").read_text())["vision_config"]
        | {"hidden_size": hidden},
    )
    config = Config.from_folder(folder)
    parameters = dict(tree_flatten(build(config).parameters()))
    shapes = {name: array.shape for name, array in parameters.items()}
    del shapes[f"{PATCH_EMBED}.bias"], shapes[f"{PATCH_EMBED}.motion"]
    shapes[f"{PATCH_EMBED}.weight"] = (EMBED, 3, TEMPORAL_PATCH, PATCH, PATCH)
    names, total, place = list(shapes), 0, {}
    for shard in range(shards):
        file = folder / f"model-{shard + 1:05}-of-{shards:05}.safetensors"
        header, end = {}, 0
        for name in names[shard::shards]:
            begin, end = end, end + math.prod(shapes[name]) * ITEM_BYTES[dtype]
            place[name] = file.name
            header[name] = {
                "dtype": dtype,
                "shape": list(shapes[name]),
                "data_offsets": [begin, end],
            }
        text = json.dumps(header).encode()
        file.write_bytes(len(text).to_bytes(8, "little") + text)
        os.truncate(file, 8 + len(text) + end)
        total += end
    index = json.dumps({"metadata": {"total_size": total}, "weight_map": place})
    (folder / "model.safetensors.index.json").write_text(index)
    return total


# Most bytes of memory that a process has held since it began. What `getrusage` says of a child on
# Linux is at least what its parent held.
PEAK_MEMORY = """
def peak_memory():
    import resource, sys
    if sys.platform == "darwin":
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with open("/proc/self/status") as status:
        (line,) = [line for line in status if line.startswith("VmHWM")]
    return int(line.split()[1]) * 1024
"""


def peak_of(work: str, *arguments: str | Path) -> int:
    """Bytes by which another Python's memory grew, at most, while it did something.

    Args:
        work: Lines of Python that import all and define `work(...)`.
        arguments: What `work` is called with.
    """
    script = f"""{PEAK_MEMORY}{work}
import sys
before = peak_memory()
work(*sys.argv[1:])
print(peak_memory() - before)
"""
    ran = run("-c", script, *arguments)
    assert (ran.code, ran.err) == (0, "")
    return int(ran.out)
