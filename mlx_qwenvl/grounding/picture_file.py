"""The file that a picture with its boxes goes to."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from mlx_qwenvl.errors import OptionError
from mlx_qwenvl.whole_file import written_whole


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
    def at(cls, path: str, asked_by: str) -> PictureFile:
        """A file that can be written, as far as that is known beforehand.

        Args:
            path: The file; its ending says the format.
            asked_by: The option or command that names it, for errors.

        Raises:
            OptionError: The ending names no format, or the folder is missing.
        """
        file = Path(path)
        name = Image.registered_extensions().get(file.suffix.lower())
        if name not in Image.SAVE:
            raise OptionError(f"{asked_by} {path}: expected a file such as boxes.png")
        if not file.parent.is_dir():
            raise OptionError(f"{asked_by} {path}: there is no folder {file.parent}")
        return cls(file, name)

    def save(self, picture: Image.Image) -> None:
        """Write the file as a whole, or leave what was there.

        Raises:
            OSError: It cannot be written.
        """
        with written_whole(self.path) as file:
            picture.save(file, self.format)
