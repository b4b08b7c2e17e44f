"""Lightning under the name that the program knows it by: `pytorch_lightning` or `lightning.pytorch`.

Both packages hold every class, and a Trainer of one refuses a module of the other. The one that is imported first is taken,
`pytorch_lightning` where none is. So import `lightning` before `d2v_lightning`.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING


def chosen(imported: Iterable[str]) -> str:
    """The name of the Lightning to use, from the names of imported modules in the order of their import."""
    return next((name for name in imported if name in ("pytorch_lightning", "lightning.pytorch")), "pytorch_lightning")


if TYPE_CHECKING:
    import lightning_fabric as fabric
    import lightning_fabric.plugins.io.torch_io
    import lightning_fabric.utilities.exceptions  # noqa: F401
    import pytorch_lightning as pl
    import pytorch_lightning.cli  # noqa: F401
    from pytorch_lightning.utilities import rank_zero_info, rank_zero_only, rank_zero_warn
else:
    pl = importlib.import_module(chosen(sys.modules))
    fabric = importlib.import_module("lightning_fabric" if pl.__name__ == "pytorch_lightning" else "lightning.fabric")
    rank_zero_info, rank_zero_warn = pl.utilities.rank_zero_info, pl.utilities.rank_zero_warn
    rank_zero_only = pl.utilities.rank_zero_only

__all__ = ["fabric", "pl", "rank_zero_info", "rank_zero_only", "rank_zero_warn"]
