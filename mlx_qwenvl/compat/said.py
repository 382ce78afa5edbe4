"""What becomes of an option of mistral.rs's: it acts, or it is refused, or it is ignored aloud.

An option is refused where the answer or the files would be others without it, and ignored where
only speed, memory or placement would. Its fate stands where it is declared.
"""

from __future__ import annotations

import logging
from dataclasses import field, fields
from typing import TYPE_CHECKING, Any

from mlx_qwenvl.errors import OptionError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

log = logging.getLogger("mlx_qwenvl.compat")


def refused(why: str, default: Any = None, harmless: tuple[object, ...] = ()) -> Any:
    """A field that may only have a value that changes nothing.

    Args:
        why: What to do instead, behind the option's name.
        default: mistral.rs's.
        harmless: Other values that ask for what is done anyway.
    """
    return field(default=default, metadata={"refused": why, "harmless": harmless})


def ignored(why: str, default: Any = None, harmless: tuple[object, ...] = ()) -> Any:
    """A field without effect, which is told where it is set.

    Args:
        why: Why it has none.
        default: mistral.rs's.
        harmless: Other values that ask for what is done anyway.
    """
    return field(default=default, metadata={"ignored": why, "harmless": harmless})


def settle(options: DataclassInstance) -> None:
    """Refuse or tell of the options that mean nothing here.

    Values are never logged: one of them may hold a token.

    Raises:
        OptionError: One is refused.
    """
    for option in fields(options):
        value = getattr(options, option.name)
        nothing = (option.default, None, False, *option.metadata.get("harmless", ()))
        if (isinstance(value, (list, tuple, dict)) and not value) or value in nothing:
            continue
        if "refused" in option.metadata:
            raise OptionError(f"{option.name} {option.metadata['refused']}", option.name)
        if "ignored" in option.metadata:
            log.warning("%s is ignored: %s", option.name, option.metadata["ignored"])
