"""Fine-tuning at the size of a pre-training config: our modules, and the same network from other libraries."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from d2v_lightning import AudioEncoder, ImageEncoder, Optimization, TextEncoder
from d2v_lightning.configurable import Tree, build
from d2v_lightning.letters import BLANK, SEPARATOR

CLASSES = 1000  # of images
TOKENS = 32  # of transcripts, blank included
Batch = dict[str, Tensor]
Make = Callable[[Tree, bool], pl.LightningModule]


class Supervised(pl.LightningModule):
    """A network of another library with our optimiser; `loss` makes the loss of network and batch."""

    def __init__(self, network: nn.Module, loss: Callable[[nn.Module, Batch], Tensor], compile: bool) -> None:
        super().__init__()
        self.network, self.loss, self.compile_network = network, loss, compile
        self.optimization = Optimization()

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        return self.loss(self.network, batch)

    def setup(self, stage: str) -> None:
        if self.compile_network:
            self.network.compile()

    def configure_optimizers(self) -> Any:
        return self.optimization.configure(self, int(self.trainer.estimated_stepping_batches))


def sizes(backbone: Tree) -> tuple[Tree, Tree]:
    """Arguments of encoder and trunk."""
    return backbone["init_args"]["encoder"]["init_args"], backbone["init_args"]["transformer"]["init_args"]


def trunk_sizes(trunk: Tree) -> dict[str, int]:
    """Sizes of a trunk under the names of transformers."""
    return {
        "hidden_size": trunk["dim"],
        "num_hidden_layers": trunk["depth"],
        "num_attention_heads": trunk["num_heads"],
        "intermediate_size": int(trunk["dim"] * trunk["mlp_ratio"]),
    }


# ---- images ----------------------------------------------------------------------------------------------------------


def our_image_classifier(backbone: Tree, compile: bool) -> pl.LightningModule:
    """`ImageClassifier` on the config's backbone, without mixing, as the peers."""
    from d2v_lightning import ImageClassifier

    return ImageClassifier(
        num_classes=CLASSES,
        backbone=build(backbone),
        mixup=0.0,
        cutmix=0.0,
        label_smoothing=0.0,
        optimization=Optimization(),
        compile=compile,
    )


def transformers_image_classifier(backbone: Tree, compile: bool) -> pl.LightningModule:
    """`Data2VecVisionForImageClassification`."""
    from transformers import Data2VecVisionConfig, Data2VecVisionForImageClassification

    encoder, trunk = sizes(backbone)
    config = Data2VecVisionConfig(
        **trunk_sizes(trunk),
        attention_probs_dropout_prob=trunk["attention_dropout"],
        drop_path_rate=trunk["drop_path"],
        layer_scale_init_value=trunk["layer_scale"],
        use_shared_relative_position_bias=True,
        image_size=encoder["image_size"],
        patch_size=encoder["patch_size"],
        num_channels=encoder["in_channels"],
        num_labels=CLASSES,
    )
    network = Data2VecVisionForImageClassification(config)
    return Supervised(
        network, lambda net, batch: F.cross_entropy(net(batch["inputs"]).logits.float(), batch["labels"]), compile
    )


def timm_image_classifier(backbone: Tree, compile: bool) -> pl.LightningModule:
    """A supervised ViT of timm; with the sizes of Base it is `vit_base_patch16_224`."""
    from timm.models.vision_transformer import VisionTransformer

    encoder, trunk = sizes(backbone)
    network = VisionTransformer(
        img_size=encoder["image_size"],
        patch_size=encoder["patch_size"],
        in_chans=encoder["in_channels"],
        num_classes=CLASSES,
        embed_dim=trunk["dim"],
        depth=trunk["depth"],
        num_heads=trunk["num_heads"],
        mlp_ratio=trunk["mlp_ratio"],
        drop_path_rate=trunk["drop_path"],
    )
    return Supervised(
        network, lambda net, batch: F.cross_entropy(net(batch["inputs"]).float(), batch["labels"]), compile
    )


# ---- speech ----------------------------------------------------------------------------------------------------------


def our_speech_ctc(backbone: Tree, compile: bool) -> pl.LightningModule:
    """`SpeechCTC` on the config's backbone; convolutions frozen, trunk trained, as the peer."""
    from d2v_lightning import SpeechCTC

    tokens = [BLANK, SEPARATOR, *(f"<{number}>" for number in range(TOKENS - 2))]
    return SpeechCTC(
        backbone=build(backbone),
        vocabulary=tokens,
        freeze_trunk_steps=0,
        optimization=Optimization(),
        compile=compile,
    )


def transformers_speech_ctc(backbone: Tree, compile: bool) -> pl.LightningModule:
    """`Data2VecAudioForCTC`, without its masks and layer drop, which no compiler takes."""
    from transformers import Data2VecAudioConfig, Data2VecAudioForCTC

    _, trunk = sizes(backbone)
    config = Data2VecAudioConfig(
        **trunk_sizes(trunk),
        vocab_size=TOKENS,
        apply_spec_augment=False,
        layerdrop=0.0,
    )
    network = Data2VecAudioForCTC(config)
    network.freeze_feature_encoder()

    def loss(net: nn.Module, batch: Batch) -> Tensor:
        log_probs = net(batch["inputs"]).logits.float().log_softmax(dim=-1).transpose(0, 1)
        lengths = torch.full((log_probs.shape[1],), len(log_probs), device=log_probs.device)
        return F.ctc_loss(log_probs, batch["labels"], lengths, batch["label_lengths"], zero_infinity=True)

    return Supervised(network, loss, compile)


# ---- text ------------------------------------------------------------------------------------------------------------


def our_text_classifier(backbone: Tree, compile: bool) -> pl.LightningModule:
    """`GLUEClassifier` on the config's backbone."""
    from d2v_lightning import GLUEClassifier

    return GLUEClassifier("sst2", backbone=build(backbone), optimization=Optimization(), compile=compile)


def transformers_text_classifier(backbone: Tree, compile: bool) -> pl.LightningModule:
    """`Data2VecTextForSequenceClassification`."""
    from transformers import Data2VecTextConfig, Data2VecTextForSequenceClassification

    encoder, trunk = sizes(backbone)
    config = Data2VecTextConfig(
        vocab_size=encoder["vocab_size"],
        **trunk_sizes(trunk),
        max_position_embeddings=encoder["max_positions"] + 2,
        type_vocab_size=1,
        num_labels=2,
    )
    network = Data2VecTextForSequenceClassification(config)
    return Supervised(
        network, lambda net, batch: F.cross_entropy(net(batch["inputs"]).logits.float(), batch["labels"]), compile
    )


PEERS: dict[type, dict[str, Make]] = {
    ImageEncoder: {
        "classifier": our_image_classifier,
        "transformers": transformers_image_classifier,
        "timm": timm_image_classifier,
    },
    AudioEncoder: {"classifier": our_speech_ctc, "transformers": transformers_speech_ctc},
    TextEncoder: {"classifier": our_text_classifier, "transformers": transformers_text_classifier},
}
