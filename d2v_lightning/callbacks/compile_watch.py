"""CompileWatch: says when `torch.compile` has given up."""

from __future__ import annotations

from typing import Any

from d2v_lightning.flavour import pl, rank_zero_warn


class CompileWatch(pl.Callback):
    """Warns once in a run when the limit of recompilations is hit, after which new shapes are computed without compilation.

    torch itself says so in its log, in the words of its compiler.
    """

    def __init__(self) -> None:
        self._seen = 0
        self._said = False

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._seen, self._said = _limits_hit(), False

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self._said or _limits_hit() <= self._seen:
            return
        self._said = True
        rank_zero_warn(
            f"torch.compile has given up at step {trainer.global_step}: the batches have more shapes than it compiles for, "
            "and those that it has not compiled run at the speed of model.compile false from here on. Make lengths equal, or "
            "raise torch._dynamo.config.recompile_limit (docs/training.md, 'Precision and compilation')"
        )


def _limits_hit() -> int:
    """How often the compiler has reached a limit of recompilations in this process."""
    from torch._dynamo.utils import counters

    return sum(count for reason, count in counters["unimplemented"].items() if "recompile_limit" in reason)
