"""Bad inputs 74-112: video, text, options, schemas and tools."""

from __future__ import annotations

from tests.server.cases import Row

TEXT: dict[int, Row] = {}
