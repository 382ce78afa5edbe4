"""What the server's log says, and what it never says: keys, pictures, signed URLs."""

from __future__ import annotations

import logging
import re
from typing import Any

from .settings import Settings

PATTERNS = (
    (re.compile(r"(?i)\bdata:[\w.+/;=-]{0,80},[^\s'\"]*"), "data:..."),
    (re.compile(r"(?i)\b(https?://)[^\s/'\"@]*@"), r"\1"),
    (re.compile(r"(?i)\b(https?://[^\s?#'\"]+)[?#][^\s'\"]*"), r"\1?..."),
    (re.compile(r"(?i)\b(bearer|basic)\s+[^\s'\",]+"), r"\1 ..."),
    (re.compile(r"(?i)(x-api-key['\"]?\s*[:=,]\s*b?['\"]?)[^\s'\",]+"), r"\1..."),
    (re.compile(r"[A-Za-z0-9+/_-]{200,}={0,2}"), "..."),
)


class RedactingFormatter(logging.Formatter):
    """Writes a record, its trace included, without what may be somebody's secret.

    Args:
        fmt: As of `logging.Formatter`.
        keys: The operator's API keys.
    """

    def __init__(self, fmt: str, keys: frozenset[str] = frozenset()) -> None:
        super().__init__(fmt)
        self._keys = sorted(keys, key=len, reverse=True)

    def format(self, record: logging.LogRecord) -> str:
        """The text of a record."""
        return redacted(super().format(record), self._keys)


def redacted(text: str, keys: list[str] | tuple[str, ...] = ()) -> str:
    """Text without keys, the content of data: URLs, the queries of URLs and long base64."""
    for key in keys:
        text = text.replace(key, "...")
    for pattern, instead in PATTERNS:
        text = pattern.sub(instead, text)
    return text


def log_config(settings: Settings) -> dict[str, Any]:
    """The log of a server process, as `logging.config.dictConfig` takes it: to stderr."""
    level = "INFO" if settings.log_requests else "WARNING"
    form = "%(asctime)s %(levelname)s %(message)s"
    quiet = {"handlers": ["stderr"], "level": "WARNING", "propagate": False}
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {
            "redacted": {"()": RedactingFormatter, "fmt": form, "keys": settings.api_keys}
        },
        "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "redacted"}},
        "loggers": {
            "uvicorn": quiet,
            "mlx_qwenvl.server": quiet,
            "mlx_qwenvl.server.access": quiet | {"level": level},
        },
    }
