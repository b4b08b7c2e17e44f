"""Lightning under the name that the program knows it by: `pytorch_lightning` or `lightning.pytorch`.

Both hold the same classes twice, and a Trainer of one refuses a module of the other. The one that is imported first is
taken, `pytorch_lightning` where none is: import `lightning` before `d2v_lightning`.
"""

import importlib
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import lightning_fabric as fabric
    import lightning_fabric.plugins.io.torch_io
    import lightning_fabric.utilities.exceptions  # noqa: F401
    import pytorch_lightning as pl
    import pytorch_lightning.cli  # noqa: F401
    from pytorch_lightning.utilities import rank_zero_info, rank_zero_only, rank_zero_warn
else:
    _NAMES = ("pytorch_lightning", "lightning.pytorch")
    pl = importlib.import_module(next((name for name in sys.modules if name in _NAMES), _NAMES[0]))
    fabric = importlib.import_module("lightning_fabric" if pl.__name__ == _NAMES[0] else "lightning.fabric")
    rank_zero_info, rank_zero_only, rank_zero_warn = (
        pl.utilities.rank_zero_info,
        pl.utilities.rank_zero_only,
        pl.utilities.rank_zero_warn,
    )

__all__ = ["fabric", "pl", "rank_zero_info", "rank_zero_only", "rank_zero_warn"]
