"""data2vec in PyTorch Lightning: one module, one trunk, three modalities.

The names here are public, and they are the short class paths of YAML files.
"""

from d2v_lightning.callbacks import (
    CollapseMonitor,
    CompileWatch,
    EMATeacher,
    ExactResume,
    FiniteLoss,
    HalfPrecisionCheck,
    OnlineProbe,
    PictureLogger,
    PredictionWriter,
    Preemption,
    Progress,
    RunSummary,
    SaveAtEnd,
    SaveOnError,
    StepSeed,
)
from d2v_lightning.checkpoints.backbones import load_backbone
from d2v_lightning.configurable import Configurable
from d2v_lightning.finetune import GLUEClassifier, ImageClassifier, SpeechCTC
from d2v_lightning.finetune.decoding import BeamSearch
from d2v_lightning.method.losses import RegressionLoss
from d2v_lightning.method.objective import Objective
from d2v_lightning.method.student import MaskTokenStudent, VisibleStudent
from d2v_lightning.method.targets import Targets
from d2v_lightning.nn.backbone import Backbone, Features
from d2v_lightning.nn.decoder import ConvDecoder, LinearDecoder, MlpDecoder
from d2v_lightning.nn.encoders import AudioEncoder, Encoder, ImageEncoder, LogMelEncoder, TextEncoder
from d2v_lightning.nn.position import Alibi, RelativePositionBias
from d2v_lightning.nn.transformer import Transformer
from d2v_lightning.optim.optimization import Optimization
from d2v_lightning.pretrain.data2vec import Data2Vec
from d2v_lightning.pretrain.multimodal import MultimodalData2Vec
from d2v_lightning.types import Batch

__all__ = [
    "Alibi",
    "AudioEncoder",
    "Backbone",
    "Batch",
    "BeamSearch",
    "CollapseMonitor",
    "CompileWatch",
    "Configurable",
    "ConvDecoder",
    "Data2Vec",
    "EMATeacher",
    "Encoder",
    "ExactResume",
    "Features",
    "FiniteLoss",
    "GLUEClassifier",
    "HalfPrecisionCheck",
    "ImageClassifier",
    "ImageEncoder",
    "LinearDecoder",
    "LogMelEncoder",
    "MaskTokenStudent",
    "MlpDecoder",
    "MultimodalData2Vec",
    "Objective",
    "OnlineProbe",
    "Optimization",
    "PictureLogger",
    "PredictionWriter",
    "Preemption",
    "Progress",
    "RegressionLoss",
    "RelativePositionBias",
    "RunSummary",
    "SaveAtEnd",
    "SaveOnError",
    "SpeechCTC",
    "StepSeed",
    "Targets",
    "TextEncoder",
    "Transformer",
    "VisibleStudent",
    "load_backbone",
]
