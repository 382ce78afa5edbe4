"""The operator's API keys: from the environment or a file, never from the command line.

What stands on a command line is seen by every user of the machine.
"""

from __future__ import annotations

import ipaddress
import stat
from collections.abc import Mapping
from pathlib import Path

from mlx_qwenvl.errors import OptionError

from .settings import Settings

VARIABLE = "MLX_QWENVL_API_KEY"
MIN_LENGTH = 8  # characters; a shorter key is guessed, or is a placeholder


def read_keys(environ: Mapping[str, str], file: Path | None) -> frozenset[str]:
    """The keys of which a request has to bring one; none where neither source is given.

    Args:
        environ: The environment, whose variable may hold one key.
        file: One key a line, empty lines and lines with # left aside; readable by its owner alone.

    Raises:
        OptionError: A key or the file cannot be used; the message does not hold the key.
    """
    keys = []
    if VARIABLE in environ:
        keys.append(_key(environ[VARIABLE], f"${VARIABLE}"))
    if file is not None:
        try:
            mode = file.stat().st_mode
            lines = file.read_text("utf-8").splitlines()
        except (OSError, ValueError):
            raise OptionError(f"the API key file {file.name} cannot be read as text") from None
        if stat.S_ISREG(mode) and mode & (stat.S_IRGRP | stat.S_IROTH):
            raise OptionError(
                f"the API key file {file.name} can be read by other users; run chmod 600 on it"
            )
        lines = [line for line in lines if line.strip() and not line.lstrip().startswith("#")]
        keys += [_key(line, f"a key in {file.name}") for line in lines]
        if not lines:
            raise OptionError(f"the API key file {file.name} holds no key")
    return frozenset(keys)


def bind_check(settings: Settings) -> None:
    """Refuse to listen where other machines can call, unless they need a key.

    Raises:
        OptionError: The address is not the loopback's and there is no key.
    """
    if not settings.api_keys and not is_loopback(settings.host):
        raise OptionError(
            f"--host {settings.host} lets other machines call, which needs an API key; "
            f"set ${VARIABLE} or give --api-key-file"
        )


def is_loopback(host: str) -> bool:
    """Whether an address to listen on is for this machine alone; of names only localhost is."""
    try:
        return ipaddress.ip_address(host.removeprefix("[").removesuffix("]")).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def _key(text: str, where: str) -> str:
    key = text.strip()
    if len(key) < MIN_LENGTH:
        raise OptionError(f"{where} has {len(key)} characters, expected at least {MIN_LENGTH}")
    if not (key.isascii() and key.isprintable()) or " " in key:
        raise OptionError(f"{where} has characters that no header can carry; expected ASCII")
    return key
