"""What is measured side by side for `mlx-qwenvl bench --submit`: the package and its switches."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from mlx_qwenvl.benching.figures import Figures, Spread
from mlx_qwenvl.benching.machine import Machine

# By what the column is called: variables of the environment. A switch that this version or this
# machine does not have leaves a column like the first, which says so.
TOGGLES: dict[str, dict[str, str]] = {
    "as it comes": {},
    "kernels off": {"MLX_QWENVL_KERNELS": "off"},
    "padding on": {"MLX_QWENVL_PAD_MLP": "on"},
    "padding off": {"MLX_QWENVL_PAD_MLP": "off"},
}


def switched(environment: Mapping[str, str]) -> dict[str, str]:
    """This process's environment with only the given switches turned."""
    own = {name for variables in TOGGLES.values() for name in variables}
    kept = {name: value for name, value in os.environ.items() if name not in own}
    return {**kept, **environment}


def figures_from(measured: Mapping[str, Any]) -> Figures:
    """Figures from what `Figures.to_dict` made of them."""
    given = dict(measured)
    del given["ceiling_share"]
    machine = {name: value for name, value in given["machine"].items() if name != "bandwidth"}
    given["machine"] = Machine(**machine)
    given["image"] = tuple(given["image"])
    batch = given.pop("batch_rates").items()
    rates = {int(rows): Spread(**rate) for rows, rate in batch}
    spreads = {
        name: Spread(**value)
        for name, value in given.items()
        if isinstance(value, dict) and name != "machine"
    }
    return Figures(**{**given, **spreads, "batch_rates": rates})
