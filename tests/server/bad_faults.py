"""Bad inputs 128-143: what goes wrong around a request."""

from __future__ import annotations

from tests.server.cases import Row

FAULTS: dict[int, Row] = {}
