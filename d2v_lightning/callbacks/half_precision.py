"""HalfPrecisionCheck: at the start of a run in half precision each layer is compared with float32, on two samples."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils._pytree import tree_map

from d2v_lightning.callbacks.without_side_effects import without_side_effects
from d2v_lightning.flavour import pl, rank_zero_warn
from d2v_lightning.nn.transformer import Transformer

_HALF = {"bf16": torch.bfloat16, "16": torch.float16}
_SAMPLES = 2
# Relative errors that rounding does not explain. One product of rounded numbers is off by .004 in bf16; where several follow
# each other, as in attention, rounding may grow. Noise is off by 1.
_LAYER, _COMPOSED = 0.1, 0.5


class HalfPrecisionCheck(pl.Callback):
    """Compares what each layer makes in half precision with what it makes of the same rounded numbers in float32.

    Some processors' libraries have kernels that return noise for some shapes, and training on noise looks like training.
    Two samples of the first batch go through the network in eval mode, without gradients and not compiled. Random states and
    modes are afterwards what they were, so the run's numbers do not change. A layer is compared on its own input: rounding
    does not add up along the network, and the message names the layer that is wrong. Our modules bring this callback along.
    """

    def __init__(self) -> None:
        self._waits = False

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._waits = True

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        half = _HALF.get(str(trainer.precision).partition("-")[0])
        if not self._waits or half is None or not isinstance(batch, dict) or "inputs" not in batch:
            return
        self._waits = False
        compared = _Compared(half)
        for name, part in pl_module.named_modules():
            compared.listen(name, part)
        try:
            with without_side_effects(trainer, pl_module), torch.compiler.set_stance("force_eager"):
                pl_module.run_through(first_samples(batch, _SAMPLES))  # type: ignore[operator]
        finally:
            compared.stop()
        wrong = compared.wrong()
        if wrong:
            name, kind, error = wrong[0]
            others = sum(not name.startswith(f"{other}.") for other, _, _ in wrong[1:])  # not those that it is part of
            more = f" (so are {others} more)" if others else ""
            rank_zero_warn(
                f"precision {trainer.precision} gives wrong numbers on this processor: {name} ({kind}) is off by "
                f"{error:.0%} from float32, which rounding does not explain{more}: set trainer.precision to '32-true', or "
                f"to '{'16-mixed' if half == torch.bfloat16 else 'bf16-mixed'}' and see that this line is gone"
            )


def first_samples(batch: dict[str, Any], count: int) -> dict[str, Any]:
    """The first samples of a batch, with what is computed of them; `hidden`, which is flat, is left to be counted anew."""
    fields = ("inputs", "padding_mask", "mask", "corrupted", "visible")
    few = {name: batch[name][:count] for name in fields if batch.get(name) is not None}
    return few | {name: batch[name] for name in ("modality",) if name in batch}


class _Compared:
    """Errors of layers, collected by hooks on a forward pass in half precision."""

    def __init__(self, half: torch.dtype) -> None:
        self.half = half
        self._errors: dict[str, tuple[str, float, Tensor]] = {}  # kind, limit, relative error
        self._handles: list[Any] = []
        self._inside = False

    def listen(self, name: str, part: nn.Module) -> None:
        """Compare a layer, or a module of a few layers. A trunk is looked at part by part."""
        if not name or any(isinstance(inner, Transformer) for inner in part.modules()):
            return
        limit = _COMPOSED if list(part.children()) else _LAYER

        def compare(part: nn.Module, arguments: Any, options: Any, output: Any) -> None:
            if not self._inside and isinstance(output, Tensor) and output.dtype == self.half:
                error = self._error(part, arguments, options, output)
                previous = self._errors.get(name, ("", 0.0, error))[2]
                self._errors[name] = type(part).__name__, limit, torch.maximum(previous, error)

        self._handles.append(part.register_forward_hook(compare, with_kwargs=True))

    def _error(self, part: nn.Module, arguments: Any, options: Any, output: Tensor) -> Tensor:
        """Distance of the output from float32's, relative to it; infinite where only the output is not finite."""

        def rounded(value: Any) -> Any:
            floating = isinstance(value, Tensor) and value.is_floating_point()
            return value.to(self.half).float() if floating else value

        weights = {name: rounded(tensor) for name, tensor in part.named_parameters()}
        self._inside = True
        try:
            with torch.autocast(output.device.type, enabled=False):
                exact = functional_call(part, weights, tree_map(rounded, arguments), tree_map(rounded, options))
        finally:
            self._inside = False
        scale = exact.norm().clamp(min=torch.finfo(self.half).tiny * max(1, exact.numel()) ** 0.5)
        error = (output.float() - exact).norm() / scale
        return error.nan_to_num(nan=float("inf")).where(exact.isfinite().all(), 0.0)

    def stop(self) -> None:
        for handle in self._handles:
            handle.remove()

    def wrong(self) -> list[tuple[str, str, float]]:
        """(name, kind, error) of the layers that are off, in the order in which they were called."""
        if not self._errors:
            return []
        values = torch.stack([error for _, _, error in self._errors.values()]).tolist()
        rows = zip(self._errors.items(), values, strict=True)
        return [(name, kind, value) for (name, (kind, limit, _)), value in rows if value > limit]
