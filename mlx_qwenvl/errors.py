"""Every error that a caller may meet, as one tree.

    QwenVLError
    ├── MediaError          a picture that cannot be read, decoded or fitted
    │   └── FetchError      a URL that cannot be opened
    ├── PromptError         messages that do not make a prompt
    ├── OptionError         a generation option outside its range
    ├── CheckpointError     a model folder that is not what it says
    │   └── ModelNotFound   a name that leads to no model
    ├── ContextError        a prompt that does not fit the model's context
    ├── MemoryExceeded      a model or a question that does not fit into memory
    ├── NotFinite           logits of which nothing can be drawn
    └── RanksLost           a process that holds a part of the model and is gone

Messages are one line: what came, what was expected, and what to do where that is not obvious.
They are safe to show to a stranger: no object addresses, no traces, no library internals.
"""

from __future__ import annotations

__all__ = [
    "CheckpointError",
    "ContextError",
    "FetchError",
    "MediaError",
    "MemoryExceeded",
    "ModelNotFound",
    "NotFinite",
    "OptionError",
    "PromptError",
    "QwenVLError",
    "RanksLost",
]


class QwenVLError(Exception):
    """Base of all errors raised on purpose; catch this one.

    Args:
        message: One line.
        param: The option or the part of the messages that is at fault, where it is one.
    """

    def __init__(self, message: str = "", param: str | None = None) -> None:
        super().__init__(message)
        self.param = param


class MediaError(QwenVLError):
    """A picture cannot be read, decoded or fitted."""


class FetchError(MediaError):
    """A URL cannot be opened within the limits."""


class PromptError(QwenVLError):
    """Messages do not make a prompt: bad role, bad part, images and slots that disagree."""


class OptionError(QwenVLError):
    """A generation option is outside its range."""


class CheckpointError(QwenVLError):
    """A model folder is incomplete, inconsistent or of another family."""


class ModelNotFound(CheckpointError):
    """A model name leads to no folder and no repository that can be reached."""


class ContextError(QwenVLError):
    """The prompt does not fit into the model's context."""


class MemoryExceeded(QwenVLError):
    """The model or a question would need more memory than there is."""


class NotFinite(QwenVLError):
    """The model computed NaN or infinity: its weights are damaged, or too large for the dtype."""


class RanksLost(QwenVLError):
    """One of the processes that hold the model together is gone, or holds another model."""
