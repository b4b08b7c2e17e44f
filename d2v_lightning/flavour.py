"""Lightning under the name that the program knows it by: `pytorch_lightning` or `lightning.pytorch`.

Both packages hold every class, and a Trainer of one refuses a module of the other. The one that is imported first is taken,
`pytorch_lightning` where none is. So import `lightning` before `d2v_lightning`.
"""

from __future__ import annotations

import importlib
import sys
import warnings
from typing import TYPE_CHECKING, Any

_NAMES = ("pytorch_lightning", "lightning.pytorch")
_CHOSEN = next((name for name in sys.modules if name in _NAMES), _NAMES[0])


class _TooLate:
    """Says why a Trainer is going to refuse our modules, where the program imports the other Lightning later."""

    @staticmethod
    def find_spec(name: str, *_: Any) -> None:
        if name in _NAMES and name != _CHOSEN:
            warnings.warn(
                f"modules of d2v_lightning belong to {_CHOSEN}, and a Trainer of {name} refuses them: import {name} before "
                "d2v_lightning",
                stacklevel=2,
            )


sys.meta_path.insert(0, _TooLate)

if TYPE_CHECKING:
    import lightning_fabric as fabric
    import lightning_fabric.plugins.io.torch_io
    import lightning_fabric.utilities.exceptions  # noqa: F401
    import pytorch_lightning as pl
    import pytorch_lightning.cli  # noqa: F401
    from pytorch_lightning.utilities import rank_zero_info, rank_zero_only, rank_zero_warn
else:
    pl = importlib.import_module(_CHOSEN)
    fabric = importlib.import_module("lightning_fabric" if _NAMES[0] == _CHOSEN else "lightning.fabric")
    rank_zero_info, rank_zero_warn = pl.utilities.rank_zero_info, pl.utilities.rank_zero_warn
    rank_zero_only = pl.utilities.rank_zero_only

__all__ = ["fabric", "pl", "rank_zero_info", "rank_zero_only", "rank_zero_warn"]
