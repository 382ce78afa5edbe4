"""`--draw FILE`: where the picture with its boxes goes."""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from mlx_qwenvl.errors import OptionError, PromptError


@dataclass(frozen=True)
class PictureFile:
    """A file to be written.

    Attributes:
        path: The file.
        format: Pillow's name of its format.
    """

    path: Path
    format: str

    @classmethod
    def at(cls, path: str, has_picture: bool) -> PictureFile:
        """A file that can be written, as far as that is known beforehand.

        Args:
            path: The file; its ending says the format.
            has_picture: Whether the question has a picture.

        Raises:
            OptionError: The ending names no format, or the folder is missing.
            PromptError: There is no picture.
        """
        if not has_picture:
            raise PromptError(f"--draw {path}: there is no picture to draw on; give one (--image)")
        file = Path(path)
        name = Image.registered_extensions().get(file.suffix.lower())
        if name not in Image.SAVE:
            raise OptionError(f"--draw {path}: expected a file such as boxes.png or boxes.jpg")
        if not file.parent.is_dir():
            raise OptionError(f"--draw {path}: there is no folder {file.parent}")
        return cls(file, name)

    def save(self, picture: Image.Image) -> None:
        """Write the file as a whole, or leave what was there.

        Raises:
            OSError: It cannot be written.
        """
        descriptor, draft = tempfile.mkstemp(dir=self.path.parent, prefix=f".{self.path.name}.")
        try:
            with os.fdopen(descriptor, "wb") as file:
                picture.save(file, self.format)
            os.chmod(draft, 0o666 & ~_umask())
            os.replace(draft, self.path)
        except BaseException:
            os.unlink(draft)
            raise


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
