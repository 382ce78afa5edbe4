"""What is asked about, by its name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, get_args

Kind: TypeAlias = Literal["image", "video"]
KINDS: tuple[Kind, ...] = get_args(Kind)


@dataclass(frozen=True)
class Named:
    """A picture or a video.

    Attributes:
        kind: Which of them it was named as; also the field of a line that holds its name.
        name: A path or a URL.
    """

    kind: Kind
    name: str

    @classmethod
    def of_line(cls, entry: Mapping[str, Any]) -> Named | None:
        """What a line tells of; None where it names nothing."""
        for kind in KINDS:
            if isinstance(entry.get(kind), str):
                return cls(kind, entry[kind])
        return None

    @property
    def field(self) -> dict[str, str]:
        """What begins its line."""
        return {self.kind: self.name}
