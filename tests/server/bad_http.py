"""Bad inputs 113-127, 144 and 145: the wire, and what errors and logs may hold."""

from __future__ import annotations

from tests.server.cases import Row

HTTP: dict[int, Row] = {}
