"""The one Transformer that images, speech and text share: attention, feed-forward network, block and stack."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from d2v_lightning.configurable import Configurable
from d2v_lightning.nn.position import Alibi, RelativePositionBias
from d2v_lightning.support.errors import UserError, at_least, probabilities


class LayerResult(NamedTuple):
    """What one block leaves behind, both (B, N, D): its output, and its FFN output before `dropout` and residual."""

    block: Tensor
    ffn: Tensor


class Attention(nn.Module):
    """Multi-head self-attention with an optional bias on the scores.

    Args:
        dim: width D.
        num_heads: heads H; D / H is the width of a head.
        qkv_bias: which of query, key and value have a bias. BEiT and data2vec 1.0 images have none on the key ("qv").
        attention_dropout: dropout on the attention weights.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        qkv_bias: Literal["qkv", "qv", "none"] = "qkv",
        attention_dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.attention_dropout = attention_dropout
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias == "qkv")
        self.q_bias = nn.Parameter(torch.zeros(dim)) if qkv_bias == "qv" else None
        self.v_bias = nn.Parameter(torch.zeros(dim)) if qkv_bias == "qv" else None
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """Attend within x (B, N, D). `bias`, broadcast to (B, H, N, N), is added to the scores; -inf excludes a key."""
        batch, length, dim = x.shape
        qkv = self.qkv(x)
        if self.q_bias is not None and self.v_bias is not None:
            qkv = qkv + torch.cat([self.q_bias, torch.zeros_like(self.q_bias), self.v_bias]).to(qkv.dtype)
        q, k, v = qkv.reshape(batch, length, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        dropout = self.attention_dropout if self.training else 0.0
        if q.is_cpu and q.dtype == torch.bfloat16:  # torch's fused one takes two to ten times as long there
            scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)
            weights = (scores if bias is None else scores + bias).softmax(dim=-1)
            mixed = F.dropout(weights, dropout) @ v
        else:
            mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=bias, dropout_p=dropout)
        return self.proj(mixed.transpose(1, 2).reshape(batch, length, dim))


class Mlp(nn.Module):
    """Feed-forward network: expand, GELU, dropout, contract, dropout."""

    def __init__(self, dim: int, hidden_dim: int, activation_dropout: float = 0.0, output_dropout: float = 0.0) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden_dim)
        self.fc2 = nn.Linear(hidden_dim, dim)
        self.activation_dropout = nn.Dropout(activation_dropout)
        self.output_dropout = nn.Dropout(output_dropout)

    def forward(self, x: Tensor) -> Tensor:
        return self.output_dropout(self.fc2(self.activation_dropout(F.gelu(self.fc1(x)))))


class LayerScale(nn.Module):
    """A learned factor per channel on a residual branch (Touvron et al. 2021)."""

    def __init__(self, dim: int, initial: float) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((dim,), float(initial)))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


class DropPath(nn.Module):
    """Stochastic depth: drop a residual branch for a whole sample, and scale the surviving ones up to keep the mean."""

    def __init__(self, probability: float) -> None:
        super().__init__()
        self.probability = probability

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.probability == 0.0:
            return x
        keep = 1.0 - self.probability
        survives = torch.rand(x.shape[0], *[1] * (x.ndim - 1), device=x.device) < keep
        return x * (survives.to(x.dtype) / keep)


class Block(nn.Module):
    """Attention and FFN with residuals, pre-norm (1.0 images) or post-norm (1.0 speech and text, all of 2.0)."""

    def __init__(
        self,
        dim: int,
        num_heads: int,
        hidden_dim: int,
        norm: Literal["pre", "post"],
        norm_eps: float,
        qkv_bias: Literal["qkv", "qv", "none"],
        layer_scale: float | None,
        dropout: float,
        attention_dropout: float,
        activation_dropout: float,
        output_dropout: float,
        drop_path: float,
    ) -> None:
        super().__init__()
        self.pre_norm = norm == "pre"
        self.norm1 = nn.LayerNorm(dim, eps=norm_eps)
        self.attn = Attention(dim, num_heads, qkv_bias, attention_dropout)
        self.scale1 = nn.Identity() if layer_scale is None else LayerScale(dim, layer_scale)
        self.norm2 = nn.LayerNorm(dim, eps=norm_eps)
        self.mlp = Mlp(dim, hidden_dim, activation_dropout, output_dropout)
        self.scale2 = nn.Identity() if layer_scale is None else LayerScale(dim, layer_scale)
        self.dropout = nn.Dropout(dropout)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor, bias: Tensor | None = None) -> LayerResult:
        """Block output and FFN output, the latter before `dropout`, residual and the block's last norm; both (B, N, D)."""
        if self.pre_norm:
            x = x + self.drop_path(self.dropout(self.scale1(self.attn(self.norm1(x), bias))))
            ffn = self.scale2(self.mlp(self.norm2(x)))
            return LayerResult(x + self.drop_path(self.dropout(ffn)), ffn)
        x = self.norm1(x + self.drop_path(self.dropout(self.scale1(self.attn(x, bias)))))
        ffn = self.scale2(self.mlp(x))
        return LayerResult(self.norm2(x + self.drop_path(self.dropout(ffn))), ffn)


def drop_path_rates(last: float, depth: int, prenet_depth: int = 0) -> list[float]:
    """Stochastic depth of each block: linear from 0 at the first to `last` at the last.

    With a prenet as the fine-tuning of 2.0 has it (`mae_image_classification.py`): L points are laid from 0 to `last`, L
    being the number of blocks *above* the prenet. The prenet's P blocks rise linearly from 0 to point P - 1, the others from
    point P to `last`.
    """
    above = depth - prenet_depth

    def point(place: int) -> float:
        return last * min(1.0, place / max(1, above - 1))

    first = point(prenet_depth)
    return [
        *(point(prenet_depth - 1) * layer / max(1, prenet_depth - 1) for layer in range(prenet_depth)),
        *(first + (last - first) * layer / max(1, above - 1) for layer in range(above)),
    ]


class Transformer(Configurable, nn.Module):
    """A stack of blocks.

    The defaults are those of configs/pretrain/image_base.yaml, without its `drop_path` .25 and `attention_dropout` .05.

    Args:
        dim: width D. depth: blocks L. num_heads: heads H. mlp_ratio: hidden width of the FFN as a multiple of D.
        norm: layer norm before ("pre") or after ("post") attention and FFN.
        norm_eps: epsilon of every layer norm.
        final_norm: a layer norm after the last block (pre-norm stacks need one).
        input_norm: a layer norm before the first block (speech 1.0; 2.0 but for text).
        qkv_bias: see `Attention`.
        layer_scale: starting value of LayerScale; None for none.
        dropout, attention_dropout, activation_dropout: after attention and FFN; on attention weights; inside the FFN.
        activation_dropout_twice: `activation_dropout` also acts on the FFN's output (2.0, whose blocks have timm's `Mlp`: its
            `drop` acts after `fc2` too).
        input_dropout: before the first block, after its norm (speech, text: .1).
        drop_path: stochastic depth of the last block, see `drop_path_rates`.
        layer_drop: probability that a whole block leaves its input as it is, in training (speech: .05).
        init: "vision": truncated normal of std .02 cut at one std, residual projections divided by sqrt(2 x layer
            number) (BEiT); "normal": normal of std .02 (BERT). Biases start at 0.
        position_bias: bias on the attention scores; None for none.
        prenet_depth: of the `depth` blocks, how many at the bottom are never averaged into targets (2.0, Base images: 2).
        gradient_checkpointing: recompute activations in the backward pass: less memory for about a third more time.

    Raises:
        ValueError: sizes or probabilities out of range, an unknown choice, or a `position_bias` for another trunk.
    """

    def __init__(
        self,
        dim: int = 768,
        depth: int = 12,
        num_heads: int = 12,
        mlp_ratio: float = 4.0,
        norm: Literal["pre", "post"] = "pre",
        norm_eps: float = 1e-6,
        final_norm: bool = True,
        input_norm: bool = False,
        qkv_bias: Literal["qkv", "qv", "none"] = "qv",
        layer_scale: float | None = 1e-4,
        dropout: float = 0.0,
        attention_dropout: float = 0.0,
        activation_dropout: float = 0.0,
        activation_dropout_twice: bool = False,
        input_dropout: float = 0.0,
        drop_path: float = 0.0,
        layer_drop: float = 0.0,
        init: Literal["vision", "normal"] = "vision",
        position_bias: RelativePositionBias | Alibi | None = None,
        prenet_depth: int = 0,
        gradient_checkpointing: bool = False,
    ) -> None:
        super().__init__()
        at_least(1, dim=dim)
        probabilities(
            dropout=dropout,
            attention_dropout=attention_dropout,
            activation_dropout=activation_dropout,
            input_dropout=input_dropout,
        )
        if round(dim * mlp_ratio) < 1:
            raise UserError(f"mlp_ratio is {mlp_ratio}: the FFN must be one wide or more")
        if num_heads < 1 or dim % num_heads:
            raise UserError(f"dim {dim} is not a multiple of num_heads {num_heads}")
        if depth < 1:
            raise UserError(f"depth is {depth}: there must be at least one block")
        for name, choice, choices in (
            ("norm", norm, ("pre", "post")),
            ("qkv_bias", qkv_bias, ("qkv", "qv", "none")),
            ("init", init, ("vision", "normal")),
        ):
            if choice not in choices:
                raise UserError(f"{name} is {choice!r}: choose from {', '.join(choices)}")
        if not 0.0 <= drop_path < 1.0 or not 0.0 <= layer_drop <= 1.0:
            raise UserError(
                f"drop_path is {drop_path}, layer_drop {layer_drop}: both are probabilities, drop_path below 1"
            )
        if position_bias is not None and len(position_bias.tables) not in (1, depth):
            raise UserError(
                f"position_bias has {len(position_bias.tables)} tables: 1 (shared by all blocks) or {depth} (one a block)"
            )
        if position_bias is not None and (heads := position_bias.tables[0].shape[-1]) != num_heads:
            raise UserError(
                f"position_bias.num_heads is {heads}, but the trunk's num_heads is {num_heads}: make them equal"
            )
        if not 0 <= prenet_depth < depth:
            raise UserError(f"prenet_depth is {prenet_depth}: it must lie below depth {depth}")
        self.dim, self.depth, self.prenet_depth, self.layer_drop = dim, depth, prenet_depth, layer_drop
        self.gradient_checkpointing = gradient_checkpointing
        self.position_bias = position_bias
        self.input_norm = nn.LayerNorm(dim, eps=norm_eps) if input_norm else nn.Identity()
        self.input_dropout = nn.Dropout(input_dropout)
        self.blocks = nn.ModuleList(
            Block(
                dim=dim,
                num_heads=num_heads,
                hidden_dim=round(dim * mlp_ratio),
                norm=norm,
                norm_eps=norm_eps,
                qkv_bias=qkv_bias,
                layer_scale=layer_scale,
                dropout=dropout,
                attention_dropout=attention_dropout,
                activation_dropout=activation_dropout,
                output_dropout=activation_dropout if activation_dropout_twice else 0.0,
                drop_path=rate,
            )
            for rate in drop_path_rates(drop_path, depth, prenet_depth)
        )
        self.norm = nn.LayerNorm(dim, eps=norm_eps) if final_norm else nn.Identity()
        self._initialise(init)

    def _initialise(self, init: Literal["vision", "normal"]) -> None:
        for layer, block in enumerate(self.blocks, start=1):
            assert isinstance(block, Block)
            for linear in (block.attn.qkv, block.attn.proj, block.mlp.fc1, block.mlp.fc2):
                if init == "vision":
                    nn.init.trunc_normal_(linear.weight, std=0.02, a=-0.02, b=0.02)
                else:
                    nn.init.normal_(linear.weight, std=0.02)
                if linear.bias is not None:
                    nn.init.zeros_(linear.bias)
            if init == "vision":
                with torch.no_grad():
                    block.attn.proj.weight.div_(math.sqrt(2.0 * layer))
                    block.mlp.fc2.weight.div_(math.sqrt(2.0 * layer))

    def forward(
        self,
        x: Tensor,
        padding_mask: Tensor | None = None,
        keep: Sequence[int] = (),
        positions: Tensor | None = None,
        input_dropped: bool = False,
    ) -> tuple[Tensor, list[LayerResult]]:
        """Contextualise tokens.

        Args:
            x: tokens (B, N, D).
            padding_mask: (B, N) bool, True = padding, which no token attends to.
            keep: blocks whose results are wanted, 0-based.
            positions: (B or 1, V) int64, where in the whole sequence each token stands that is not extra; None where all are
                there and none is extra. Only a bias that depends on distance reads it.
            input_dropped: `input_dropout` has acted on x already.

        Returns:
            Output after the final norm (B, N, D), and the `LayerResult` of each block in `keep`, in the order of the stack.
        """
        biases = self._attention_biases(x, padding_mask, positions)
        results = []
        x = self.input_norm(x)
        if not input_dropped:
            x = self.input_dropout(x)
        for layer, block in enumerate(self.blocks):
            bias = biases[layer] if len(biases) > 1 else biases[0]
            if self.gradient_checkpointing and self.training:
                result = checkpoint(block, x, bias, use_reentrant=False)
            else:
                result = block(x, bias)
            if self.training and self.layer_drop > 0.0:
                # Computed all the same: no branch on a number drawn, so one static graph (torch.compile, XLA), and every
                # parameter has a gradient, which plain DDP waits for.
                kept = torch.rand((), device=x.device) >= self.layer_drop
                result = result._replace(block=torch.where(kept, result.block, x))
            x = result.block
            if layer in keep:
                results.append(result)
        return self.norm(x), results

    def _attention_biases(
        self, x: Tensor, padding_mask: Tensor | None, positions: Tensor | None
    ) -> list[Tensor] | list[None]:
        device_type = x.device.type
        biases = self.position_bias(x.shape[1], positions) if self.position_bias is not None else None
        # Once here, not in every block. The meta device knows no autocast; torch 2.11 cannot compile `is_autocast_available`.
        autocasts = device_type != "meta" and torch.is_autocast_enabled(device_type)
        if biases is not None and autocasts:
            biases = [bias.to(torch.get_autocast_dtype(device_type)) for bias in biases]
        if padding_mask is None:
            return biases if biases is not None else [None]
        excluded = torch.zeros(padding_mask.shape, device=padding_mask.device)
        excluded = excluded.masked_fill(padding_mask, float("-inf"))[:, None, None, :]
        return [excluded] if biases is None else [bias + excluded for bias in biases]
