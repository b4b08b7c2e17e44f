"""Fine-tuning: a pre-trained backbone, a head and a task."""

from d2v_lightning.finetune.glue import GLUEClassifier
from d2v_lightning.finetune.image_classification import ImageClassifier
from d2v_lightning.finetune.speech_ctc import SpeechCTC

__all__ = ["GLUEClassifier", "ImageClassifier", "SpeechCTC"]
