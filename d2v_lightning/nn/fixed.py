"""FixedBuffers: tables that follow from a module's settings, and outlive a change of memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


class FixedBuffers(nn.Module):
    """Base of modules with buffers that are a function of the settings, and therefore in no state dict.

    They are filled again whenever tensors of the module move or are loaded. So a network may be built on the meta device,
    get memory from `to_empty` and weights from `load_state_dict`, also with `assign=True`.
    """

    def fixed_buffers(self) -> dict[str, Tensor]:
        """The buffers by name, on the CPU."""
        raise NotImplementedError(f"{type(self).__name__} must define fixed_buffers()")

    def register_fixed(self) -> None:
        """Make the buffers; to be called at the end of the constructor."""
        device = torch.get_default_device()
        with torch.device("cpu"):
            for name, value in self.fixed_buffers().items():
                self.register_buffer(name, value.to(device), persistent=False)
        self.register_load_state_dict_post_hook(_fill)  # type: ignore[no-untyped-call]

    def _apply(self, fn: Callable[..., Tensor], recurse: bool = True) -> Any:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        _fill(self)
        return self


def _fill(module: nn.Module, incompatible_keys: object = None) -> None:
    assert isinstance(module, FixedBuffers)
    home = next(module.parameters()).device
    with torch.device("cpu"):
        for name, value in module.fixed_buffers().items():
            buffer = module.get_buffer(name)
            module._buffers[name] = value.to(home if buffer.is_meta else buffer.device, buffer.dtype)
