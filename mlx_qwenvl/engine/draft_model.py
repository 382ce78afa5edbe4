"""Loading a draft model, which must speak in the same tokens as the model it works for."""

from __future__ import annotations

from mlx_qwenvl.engine.fit import check_weights
from mlx_qwenvl.errors import OptionError
from mlx_qwenvl.inputs.image import ImageGeometry
from mlx_qwenvl.inputs.processor import Processor
from mlx_qwenvl.inputs.tokenizer import Tokenizer
from mlx_qwenvl.models.config import Config
from mlx_qwenvl.models.model import Model
from mlx_qwenvl.weights.bundle import open_bundle
from mlx_qwenvl.weights.load import DTYPES, device_dtype, load_model
from mlx_qwenvl.weights.memory import weight_bytes
from mlx_qwenvl.weights.resolve import resolve_model


def load_draft(
    name: str,
    tokenizer: Tokenizer,
    geometry: ImageGeometry,
    *,
    dtype: str | None = None,
    progress: bool = False,
) -> Model:
    """Load a draft model.

    Args:
        name: What `load` takes.
        tokenizer: Of the model that answers; the draft's must be the same. Rows of the embedding
            beyond it, which only pad, may differ in number.
        geometry: How that model's pictures are cut, as the draft must have them too.
        dtype: For weights and activations, as for `load_model`.
        progress: Show a bar on stderr while downloading.

    Raises:
        OptionError: The draft has other tokens or takes pictures in another way.
        ModelNotFound: The name leads to no model.
        CheckpointError: The model's files are incomplete, damaged or of another family.
        MemoryExceeded: The weights do not fit into memory.
    """
    with open_bundle(resolve_model(name, progress=progress)) as bundle:
        config = Config.from_folder(bundle.folder)
        processor = Processor.from_folder(bundle.folder)
        own = Tokenizer.from_folder(bundle.folder).vocabulary
        if own != tokenizer.vocabulary:
            differing = len(own.items() ^ tokenizer.vocabulary.items())
            raise OptionError(
                f"the draft model {name} has another vocabulary ({differing} entries differ), "
                "expected the tokens of the model that answers"
            )
        if processor.geometry != geometry:
            raise OptionError(
                f"the draft model {name} cuts pictures as {processor.geometry}, expected {geometry}"
            )
        target = DTYPES[dtype] if dtype in DTYPES else device_dtype(bundle.tensors.values())
        check_weights(weight_bytes(bundle.tensors, config.text, target.size, {}))
        return load_model(bundle.tensors, config, processor.normalization, dtype=dtype)
