"""Bad inputs 1-73: addresses, data: URLs and pictures."""

from __future__ import annotations

from tests.server.cases import Row

MEDIA: dict[int, Row] = {}
