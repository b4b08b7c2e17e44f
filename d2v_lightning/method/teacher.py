"""The teacher: a frozen copy of part of the backbone that sees the whole input."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from d2v_lightning.nn.backbone import Backbone, contextualize
from d2v_lightning.nn.transformer import LayerResult
from d2v_lightning.support.errors import UserError

Scope = Literal["transformer", "context", "backbone"]


class Teacher(nn.Module):
    """Frozen copy of `scope` of the student's backbone; the rest it borrows from the student.

    | scope       | owns                | reads                            |
    |-------------|---------------------|----------------------------------|
    | transformer | trunk               | the student's tokens + positions |
    | context     | positions and trunk | the student's tokens             |
    | backbone    | everything          | the raw input                    |

    It only ever moves by `EMATeacher`. Eval mode is set once, here: Lightning keeps the mode that a sub-module is in.
    """

    def __init__(self, backbone: Backbone, scope: Scope) -> None:
        super().__init__()
        if scope not in get_args(Scope):
            raise UserError(f"teacher_scope is {scope!r}: choose from {', '.join(get_args(Scope))}")
        self.scope = scope
        self.transformer = copy.deepcopy(backbone.transformer)
        self.encoder = copy.deepcopy(backbone.encoder) if scope == "backbone" else None
        self.position = copy.deepcopy(backbone.encoder.position) if scope == "context" else None
        self.requires_grad_(False).eval()

    @torch.no_grad()
    def forward(
        self, student: Backbone, inputs: Tensor, tokens: Tensor, padding_mask: Tensor | None, keep: Sequence[int]
    ) -> list[LayerResult]:
        """Layer results of the blocks in `keep`, each (B, E + N, D), for the unmasked input.

        Args:
            student: the backbone that a teacher with a smaller scope borrows from.
            inputs: clean inputs, read if the scope is "backbone".
            tokens, padding_mask: the student's local features of them (B, N, D) and their padding (B, N), True = padding.
        """
        encoder = student.encoder
        if self.encoder is not None:
            encoder = self.encoder
            tokens, padding_mask = encoder.features(inputs, padding_mask)
        position = encoder.position if self.position is None else self.position
        return contextualize(position, self.transformer, tokens.detach(), padding_mask, keep)[1]

    def pairs(self, student: Backbone) -> tuple[list[Tensor], list[Tensor]]:
        """Teacher parameters and the student parameters that they average, in the same order.

        Parameters only: buffers here are integer indices, which an average would corrupt.
        """
        sources: list[tuple[nn.Module | None, nn.Module]] = [
            (self.transformer, student.transformer),
            (self.encoder, student.encoder),
            (self.position, student.encoder.position),
        ]
        own: list[Tensor] = []
        theirs: list[Tensor] = []
        for copied, source in sources:
            if copied is not None:
                own += list(copied.parameters())
                theirs += list(source.parameters())
        return own, theirs

    @torch.no_grad()
    def copy_from(self, student: Backbone) -> None:
        """Make the teacher equal to the student."""
        for own, theirs in zip(*self.pairs(student), strict=True):
            own.copy_(theirs)
