"""What an answer depends on, as one key: the file's bytes, the question, the options, the model.

Names, times and versions do not count: a renamed file has the key that it had, a changed one has
another, and a model that was copied or loaded by a later version of this package is the same model.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, replace

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten

from mlx_qwenvl.batching.named import Kind
from mlx_qwenvl.batching.questions import Question
from mlx_qwenvl.engine.fit import room_for_answer
from mlx_qwenvl.engine.options import Options
from mlx_qwenvl.inputs.image import ImageGeometry, ImagePatches
from mlx_qwenvl.inputs.video import Seen, VideoPatches
from mlx_qwenvl.vlm import QwenVL

FORM = "mlx-qwenvl batch 1"  # of what goes into a key
SAMPLES = 64  # values of each array of weights
# What makes an answer faster or says more about it, and leaves its text as it is.
WITHOUT_EFFECT = frozenset(
    ("cache", "speculation", "prefill_step", "on_prefill", "logprobs", "top_logprobs")
)


def model_digest(vlm: QwenVL) -> bytes:
    """A digest of a loaded model: its shape, dtypes, and samples of all weights as they are used.

    Reading all weights of a large model would take seconds; another training or quantization
    changes nearly all of them.
    """
    sha = hashlib.sha256(f"{FORM} {vlm.config!r} {vlm.processor!r}".encode())
    samples = []
    for name, array in sorted(tree_flatten(vlm.model.parameters())):
        sha.update(f"{name} {array.dtype} {array.shape}".encode())
        flat = array.reshape(-1)[:: max(1, array.size // SAMPLES)]
        # float32 holds every value of the narrower ones; packed weights are no floats.
        is_float = mx.issubdtype(array.dtype, mx.floating)
        samples.append(flat.astype(mx.float32) if is_float else flat)
    mx.eval(samples)
    for sample in samples:
        sha.update(np.array(sample).tobytes())
    return sha.digest()


def question_digest(
    vlm: QwenVL, model: bytes, question: Question, options: Options, kind: Kind = "image"
) -> bytes:
    """A digest of all that an answer depends on beside the picture or video.

    Args:
        vlm: The model.
        model: Its digest.
        question: What is asked. It counts as the tokens that the model is given, so the system
            message, the chat template and the order of the parts count as well.
        options: The call's.
        kind: What is asked about.

    Raises:
        ContextError: The question leaves no room for an answer, whatever is shown.
    """
    prompt = vlm.prompt(question.about(_least(vlm.processor.geometry, kind)), options)
    room_for_answer(vlm.config, prompt, options)  # or nothing at all could be asked about
    if kind == "image":
        options = replace(options, fps=None, n_frames=None, max_frames=None)  # of videos alone
    counting = {k: v for k, v in asdict(options).items() if k not in WITHOUT_EFFECT}
    sha = hashlib.sha256(model + json.dumps(counting, sort_keys=True).encode())
    sha.update(prompt.token_ids.astype("<i4").tobytes())
    return sha.digest()


def answer_key(question: bytes, content: bytes) -> str:
    """The key of one answer.

    Args:
        question: Digest of the question.
        content: SHA-256 of the file's bytes, as they are stored.
    """
    return hashlib.sha256(question + content).hexdigest()


def _least(geometry: ImageGeometry, kind: Kind) -> Seen:
    """The smallest picture or video that there can be."""
    merge, side = geometry.merge_size, geometry.factor
    grid, size = (1, merge, merge), (side, side)
    pixels = np.zeros((merge**2, 3 * geometry.patch_size**2), np.uint8)
    if kind == "image":
        return ImagePatches(pixels, grid, size, size, geometry)
    frames = np.tile(pixels, geometry.temporal_patch_size)
    return VideoPatches(frames, grid, (0.0,), 1.0, size, size, geometry)
