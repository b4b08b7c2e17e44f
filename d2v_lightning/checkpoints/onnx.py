"""ONNX: a network that runs without torch, with any batch size and length, checked against onnxruntime."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from d2v_lightning.nn.encoders import AudioEncoder, ImageEncoder, TextEncoder
from d2v_lightning.nn.encoders.audio import RATE
from d2v_lightning.support.atomic import atomic_write
from d2v_lightning.support.errors import UserError

TOLERANCE = 1e-4  # absolute, float32: other kernels sum in another order


class _Plain(nn.Module):
    """One tensor in, one out."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, inputs: Tensor) -> Tensor:
        output = self.module(inputs)
        return output[0] if isinstance(output, tuple) else output


def export_onnx(module: Any, path: str | Path, normalize: bool | None = None) -> None:
    """Write a backbone or a fine-tuned model, and compare it with onnxruntime at two sizes.

    The file says what its inputs must be and what its outputs mean, see `facts`. It does not say where the code lay.

    Its input is called "inputs": images (B, C, H, W), waveforms (B, S) or ids (B, T), without padding. Its output is called
    "outputs": what `module(inputs)` gives (letters: log probabilities).

    Args:
        module: a `Backbone`, `SpeechCTC`, `ImageClassifier` or `GLUEClassifier`.
        path: file to write.
        normalize: of the backbone of a speech model, which does not hold it itself: see `facts`.

    Raises:
        ValueError: onnx is not installed; the encoder is of another kind; or onnxruntime computes something else.
    """
    try:
        import onnx  # noqa: F401  (to see that it is there)
        import onnxruntime
        import onnxscript  # noqa: F401  (torch's exporter needs it)
    except ModuleNotFoundError as error:
        raise UserError(f"{error.name} is missing: pip install onnx onnxruntime onnxscript") from error
    was_training = module.training
    network = _Plain(module).eval()
    encoder = module.encoder
    example, dynamic = _example(encoder, 2, 1.0)
    try:
        with atomic_write(path) as unfinished, torch.no_grad():
            torch.onnx.export(
                network,
                (example,),
                str(unfinished),
                input_names=["inputs"],
                output_names=["outputs"],
                dynamic_shapes=({position: torch.export.Dim(name) for position, name in dynamic.items()},),
                dynamo=True,
                external_data=False,
                verbose=False,
            )
            _annotate(unfinished, facts(module, normalize))
            session = onnxruntime.InferenceSession(str(unfinished), providers=["CPUExecutionProvider"])
            for batch, longer in ((2, 1.0), (3, 1.5)):
                inputs, _ = _example(encoder, batch, longer)
                found = torch.from_numpy(session.run(None, {"inputs": inputs.numpy()})[0])
                worst = float((found - network(inputs)).abs().max())
                if not worst <= TOLERANCE:
                    raise UserError(f"onnxruntime computes something else, by {worst:.2g}: nothing was written")
    finally:
        module.train(was_training)


def facts(module: Any, normalize: bool | None = None) -> dict[str, Any]:
    """What a network does not show and its user needs, plain data by name; only what is known.

    - Any: `outputs` ("logits" of classes, "log probabilities of letters", or "features": the last block after the final norm,
      class token first), `licence` (SPDX).
    - Images: `image_size` [height, width], `channels`, `mean` and `std` of each channel of values in 0..1.
    - Speech: `sample_rate`, `normalize` (clips must have mean 0 and variance 1), `vocabulary` (letters by number, the blank
      first, "|" between words).
    - Text: `max_tokens`, `tokenizer` (for `tokenizers.Tokenizer.from_str`).
    - Classifiers: `class_names` by number.

    Args:
        module: see `export_onnx`.
        normalize: where the module does not hold it.
    """
    backbone, encoder = getattr(module, "backbone", module), module.encoder
    outputs = "log probabilities of letters" if hasattr(module, "vocabulary") else "logits"
    found: dict[str, Any] = {
        "outputs": outputs if backbone is not module else "features",
        "licence": backbone.licence,
        "class_names": getattr(module, "class_names", None),
    }
    if isinstance(encoder, ImageEncoder):
        found |= {"image_size": list(encoder.image_size), "channels": encoder.in_channels}
        found |= encoder.normalization._asdict() if encoder.normalization is not None else {}
    elif isinstance(encoder, AudioEncoder):
        found["sample_rate"] = getattr(module, "sample_rate", RATE)
        found["normalize"] = getattr(module, "normalize", normalize)
        found["vocabulary"] = getattr(module, "vocabulary", None)
    elif isinstance(encoder, TextEncoder):
        found["max_tokens"] = encoder.max_positions
        found["tokenizer"] = None if backbone.tokenizer is None else backbone.tokenizer["json"]
    return {name: value for name, value in found.items() if value is not None}


def _annotate(path: Path, said: dict[str, Any]) -> None:
    """Put facts into a file as `metadata_props`, each value as JSON, and take out what torch notes of each operation.

    That has paths of source files in it.
    """
    import onnx

    model = onnx.load(path)
    onnx.helper.set_model_props(model, {name: json.dumps(value) for name, value in said.items()})
    for graph in (model.graph, *model.functions):
        del graph.metadata_props[:]
        for node in graph.node:
            del node.metadata_props[:]
    onnx.save(model, path)


def _example(encoder: Any, batch: int, longer: float) -> tuple[Tensor, dict[int, str]]:
    """Random inputs, and the names of those dimensions that may change."""
    generator = torch.Generator().manual_seed(0)
    if isinstance(encoder, ImageEncoder):
        size = (batch, encoder.in_channels, *encoder.image_size)
        return torch.randn(size, generator=generator), {0: "batch"}
    if isinstance(encoder, AudioEncoder):
        return torch.randn(batch, int(RATE * longer), generator=generator), {0: "batch", 1: "samples"}
    if isinstance(encoder, TextEncoder):
        length = int(min(16, encoder.max_positions // 2) * longer)
        return torch.randint(4, encoder.vocab_size, (batch, length), generator=generator), {0: "batch", 1: "tokens"}
    raise UserError(f"no ONNX for a {type(encoder).__name__}: images, speech and text are known")
