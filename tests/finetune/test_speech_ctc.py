"""SpeechCTC: it learns, its frozen parts stay, padding does no harm, checkpoints carry what inference needs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from golden_case import GoldenCase
from torch import Tensor
from torch.utils.data import DataLoader
from two_ranks import TwoRanks

from d2v_lightning import (
    AudioEncoder,
    Backbone,
    Data2Vec,
    EMATeacher,
    LinearDecoder,
    LogMelEncoder,
    MaskTokenStudent,
    Optimization,
    RegressionLoss,
    SpeechCTC,
    Targets,
    Transformer,
)
from d2v_lightning.checkpoints import save_huggingface
from d2v_lightning.checkpoints.backbones import load_normalize
from d2v_lightning.flavour import pl
from d2v_lightning.nn.encoders.audio import feature_lengths
from datamodules import SpeechDataModule
from datamodules.speech.windows import SpeechWindows

CONVS = [(16, 10, 5), (16, 4, 4), (16, 4, 4), (16, 4, 4)]  # 16 kHz -> 50 Hz
VOCABULARY = ["<blank>", "|", "A", "B", "C"]
TONES = {"A": 400.0, "B": 900.0, "C": 1700.0}


def backbone(kind: type[AudioEncoder] = AudioEncoder, **transformer: Any) -> Backbone:
    torch.manual_seed(0)
    options = {"norm": "post", "norm_eps": 1e-5, "final_norm": False, "input_norm": True, "qkv_bias": "qkv"}
    trunk = Transformer(32, 2, 2, **{**options, "layer_scale": None, "init": "normal", **transformer})
    convs = {"conv_layers": CONVS} if kind is AudioEncoder else {}
    return Backbone(kind(32, **convs, position_depth=2, position_width=6, position_groups=4), trunk)


def spoken(text: str) -> Tensor:
    """A tone of 60 ms for each letter, 60 ms of near silence between them and at both ends."""
    times = torch.arange(960) / 16000
    pieces = [torch.zeros(960)]
    for letter in text:
        pieces += [torch.sin(6.2832 * TONES[letter] * times) if letter in TONES else torch.zeros(960), torch.zeros(960)]
    clip = torch.cat(pieces)
    return (clip - clip.mean()) / clip.std()


def batch_of(texts: list[str]) -> dict[str, Tensor]:
    clips = [spoken(text) for text in texts]
    labels = [torch.tensor([VOCABULARY.index(letter) for letter in text.replace(" ", "|")]) for text in texts]
    lengths = torch.tensor([len(clip) for clip in clips])
    batch = {
        "inputs": torch.nn.utils.rnn.pad_sequence(clips, batch_first=True),
        "labels": torch.nn.utils.rnn.pad_sequence(labels, batch_first=True),
        "label_lengths": torch.tensor([len(label) for label in labels]),
        "index": torch.arange(len(texts)),
    }
    if (lengths != lengths[0]).any():
        batch["padding_mask"] = torch.arange(int(lengths.max())) >= lengths[:, None]
    return batch


def loader(batches: list[dict[str, Tensor]]) -> Any:
    return DataLoader(batches, batch_size=None)  # type: ignore[arg-type]


def trainer(**options: Any) -> pl.Trainer:
    quiet = {
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": False,
    }
    return pl.Trainer(accelerator="cpu", **{**quiet, **options})


def quick(**options: Any) -> Optimization:
    usual = {"lr": 5e-3, "betas": (0.9, 0.98), "weight_decay": 0.0, "schedule": "constant", "warmup": 1}
    return Optimization(**{**usual, **options})


@pytest.mark.parametrize("kind", [AudioEncoder, LogMelEncoder])
def test_a_tiny_set_is_learned_to_no_error(kind: type[AudioEncoder]) -> None:
    pl.seed_everything(0)
    texts = ["ABC", "CAB", "BA C", "A B", "C A", "B"]
    model = SpeechCTC(backbone(kind), vocabulary=VOCABULARY, freeze_trunk_steps=0, optimization=quick(warmup=20))
    run = trainer(max_steps=150)
    run.fit(model, loader([batch_of(texts)] * 150))
    values = run.validate(model, loader([batch_of(texts)]), verbose=False)[0]
    assert values["val/wer"] == values["val/cer"] == 0.0
    lines = model.eval().predict_step(batch_of(texts), 0)["lines"]
    assert [line["transcript"] for line in lines] == texts
    first = lines[2]["words"][1]
    assert first["word"] == "C"
    assert first["start"] == pytest.approx(0.42, abs=0.1), "C begins after A, B and a pause"


def test_a_transcript_does_not_depend_on_where_windows_fall(tmp_path: Path) -> None:
    pl.seed_everything(0)
    random = np.random.default_rng(1)

    def sentence(words: int) -> str:
        return " ".join("".join(random.choice(list("ABC"), random.integers(1, 5))) for _ in range(words))

    model = SpeechCTC(
        backbone(),
        vocabulary=VOCABULARY,
        freeze_trunk_steps=0,
        freeze_convolutions=False,
        optimization=quick(warmup=20),
    )
    batches = [batch_of([sentence(words) for words in (2, 3, 6)]) for _ in range(120)]
    trainer(max_steps=120, gradient_clip_val=1.0).fit(model, loader(batches))
    said = sentence(50)
    clip, path = spoken(said), str(tmp_path / "long.wav")
    soundfile.write(path, 0.9 * (clip / clip.abs().max()).numpy(), 16000)
    heard = []
    for core, context, windows in ((60, 5, 8), (7, 5, 3), (5, 2, 4), (3, 1, 2)):
        model.eval()
        with torch.no_grad():
            found = [
                line
                for batch in SpeechWindows([path], True, CONVS, core, context, windows)
                for line in model.predict_step(batch, 0)["lines"]
            ]
        heard.append(found[0]["transcript"])
    assert heard == [said] * 4


def test_padding_changes_nothing() -> None:
    model = SpeechCTC(backbone(), vocabulary=VOCABULARY).eval()
    batch = batch_of(["ABCAB", "C", "AB"])
    with torch.no_grad():
        whole, padding = model(batch["inputs"], batch["padding_mask"])
        assert padding is not None
        for row, text in enumerate(["ABCAB", "C", "AB"]):
            alone, none = model(spoken(text)[None])
            assert none is None
            torch.testing.assert_close(whole[row, : alone.shape[1]], alone[0], atol=1e-5, rtol=1e-5)


def test_the_trunk_waits_and_the_convolutions_never_move() -> None:
    model = SpeechCTC(
        backbone(), vocabulary=VOCABULARY, freeze_trunk_steps=3, optimization=quick(weight_decay=0.1, decay_all=True)
    )
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    batch = batch_of(["ABC", "CA", "B A"])
    frames = feature_lengths(batch["inputs"].shape[1], CONVS)
    batch |= {"mask": torch.rand(3, 1, frames) < 0.2, "channel_mask": torch.rand(3, 32) < 0.1}
    trainer(max_steps=3).fit(model, loader([batch] * 3))
    for name, tensor in model.state_dict().items():
        if name.startswith(("backbone.", "mask_token")):
            assert torch.equal(tensor, before[name]), name
    assert not torch.equal(model.state_dict()["head.weight"], before["head.weight"])
    other = SpeechCTC(backbone(), vocabulary=VOCABULARY, freeze_trunk_steps=1, optimization=quick())
    trainer(max_steps=3).fit(other, loader([batch] * 3))
    moved = {name for name, tensor in other.state_dict().items() if not torch.equal(tensor, before.get(name, tensor))}
    assert any(name.startswith("backbone.transformer.") for name in moved)
    assert not any(name.startswith(("backbone.encoder.convs.", "backbone.encoder.conv_norms.")) for name in moved)
    assert "mask_token" in moved


def test_convolutions_are_trained_where_asked_and_released_again_from_a_frozen_network() -> None:
    network = SpeechCTC(backbone(), vocabulary=VOCABULARY).backbone
    model = SpeechCTC(
        network, vocabulary=VOCABULARY, freeze_trunk_steps=1, freeze_convolutions=False, optimization=quick()
    )
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    batch = batch_of(["ABC", "CA", "B A"])
    moved: list[set[str]] = []
    for steps in (1, 3):
        trainer(max_steps=steps).fit(model, loader([batch] * 3))
        moved.append({name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])})
    convs = {name for name in before if name.startswith(("backbone.encoder.convs.", "backbone.encoder.conv_norms."))}
    assert not convs & moved[0]
    assert convs <= moved[1]


def test_a_frozen_trunk_keeps_no_activations() -> None:
    model = SpeechCTC(backbone(), vocabulary=VOCABULARY, freeze_trunk_steps=1)
    held: list[int] = []

    def hold(tensor: Tensor) -> Tensor:
        held.append(tensor.numel())
        return tensor

    batch = batch_of(["ABC", "CA"])
    for frozen in (True, False):
        model.freeze_trunk_steps = int(frozen)
        held.clear()
        with torch.autograd.graph.saved_tensors_hooks(hold, lambda tensor: tensor):
            loss = model._losses(*model(batch["inputs"], batch["padding_mask"]), batch).mean()  # type: ignore[arg-type]
        loss.backward()
        waiting = [parameter.grad for parameter in model._frozen_at_first()]
        assert all(grad is not None for grad in waiting), "plain DDP would wait for it"
        assert any(grad is not None and grad.any() for grad in waiting) != frozen
        assert (len(held) < 12) == frozen
        model.zero_grad()


class Halves(pl.LightningDataModule):
    """The batches of a run, every second one for each of two ranks."""

    def train_dataloader(self) -> Any:
        assert self.trainer is not None
        batches = [batch_of(texts) for texts in (["ABC", "CAB"], ["B"], ["AC", "CA", "BB"], ["A C"]) * 2]
        return loader(batches[self.trainer.global_rank :: self.trainer.world_size])


class Save(pl.Callback):
    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        torch.save(pl_module.state_dict(), self.folder / f"{trainer.world_size}_{trainer.global_rank}.pt")


def test_two_ranks_freeze_and_train_as_one_process(tmp_path: Path) -> None:
    """Plain DDP, which hangs where a parameter gets no gradient; the trunk is frozen for two of four steps."""
    for devices in (1, 2):
        model = SpeechCTC(
            backbone(), vocabulary=VOCABULARY, freeze_trunk_steps=2, layer_drop=0.0, optimization=quick(lr=1e-3)
        )
        trainer(
            max_steps=4,
            devices=devices,
            accumulate_grad_batches=2 // devices,
            use_distributed_sampler=False,
            strategy="auto" if devices == 1 else TwoRanks(),
            callbacks=[Save(tmp_path)],
        ).fit(model, Halves())
    one, first, second = (torch.load(tmp_path / name, weights_only=True) for name in ("1_0.pt", "2_0.pt", "2_1.pt"))
    start = backbone().state_dict()
    assert any(not torch.equal(one[f"backbone.{name}"], tensor) for name, tensor in start.items())
    for name, tensor in one.items():
        assert torch.equal(first[name], second[name]), name
        torch.testing.assert_close(first[name], tensor, atol=1e-4, rtol=1e-3)


def test_accumulated_batches_of_different_size_weigh_by_sentence() -> None:
    texts = ["ABC", "CAB", "BAC", "ACB"]
    gradients = []
    for batches, accumulate in (([batch_of(texts)], 1), ([batch_of(texts[:1]), batch_of(texts[1:])], 2)):
        model = SpeechCTC(backbone(), vocabulary=VOCABULARY, freeze_trunk_steps=0, optimization=quick(lr=1.0, warmup=1))
        kept: list[Tensor] = []
        model.optimization = quick()
        hook = model.on_before_optimizer_step

        def look(optimizer: Any, hook: Any = hook, model: SpeechCTC = model, kept: list[Tensor] = kept) -> None:
            hook(optimizer)
            kept += [p.grad.clone() for p in model.parameters() if p.grad is not None]

        model.on_before_optimizer_step = look  # type: ignore[method-assign]
        trainer(max_steps=1, accumulate_grad_batches=accumulate).fit(model, loader(batches))
        gradients.append(kept)
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-4)


def test_it_starts_from_a_pre_trained_file_with_its_mask_token_and_comes_back(tmp_path: Path) -> None:
    pretrained = Data2Vec(
        student=MaskTokenStudent(backbone(dropout=0.1, layer_drop=0.05), LinearDecoder(32, "default"), "uniform"),
        targets=Targets(1, "ffn", ["instance"], []),
        loss=RegressionLoss(0.0, "sum", "rsqrt_width"),
        ema_teacher=EMATeacher(0.9, 0.99, 10, 1),
        optimization=Optimization(),
        teacher_scope="transformer",
    )
    run = trainer()
    run.strategy.connect(pretrained)
    run.save_checkpoint(tmp_path / "pretrained.ckpt")
    model = SpeechCTC(checkpoint=str(tmp_path / "pretrained.ckpt"), vocabulary=VOCABULARY, normalize=False)
    assert pretrained.student.mask_token is not None
    assert torch.equal(model.mask_token, pretrained.student.mask_token.flatten())
    trunk = model.backbone.transformer.config["init_args"]
    assert (trunk["dropout"], trunk["activation_dropout"], trunk["layer_drop"]) == (0.0, 0.1, 0.1)
    run = trainer()
    run.strategy.connect(model)
    run.save_checkpoint(tmp_path / "tuned.ckpt")
    again = SpeechCTC.load_from_checkpoint(tmp_path / "tuned.ckpt")
    assert again.vocabulary == VOCABULARY
    assert again.normalize is False
    batch = batch_of(["AB", "CA"])
    torch.testing.assert_close(again.eval()(batch["inputs"])[0], model.eval()(batch["inputs"])[0])


def test_the_normalisation_of_pre_training_is_kept(tmp_path: Path) -> None:
    model = SpeechCTC(backbone(), vocabulary=VOCABULARY, normalize=False)
    run = trainer()
    run.strategy.connect(model)
    run.save_checkpoint(tmp_path / "raw.ckpt")
    with pytest.raises(ValueError, match=r"was trained with False: set model.normalize and data.normalize to false"):
        SpeechCTC(checkpoint=str(tmp_path / "raw.ckpt"), vocabulary=VOCABULARY)
    data = SpeechDataModule(normalize=False)
    stored = torch.load(tmp_path / "raw.ckpt", weights_only=True)
    stored["hyper_parameters"] = model.backbone.config
    stored["state_dict"] = {
        name.removeprefix("backbone."): weight
        for name, weight in stored["state_dict"].items()
        if name.startswith("backbone.")
    }
    torch.save({**stored, "run": {"data": data.config}}, tmp_path / "pretrained.ckpt")
    assert load_normalize(tmp_path / "pretrained.ckpt") is False


def test_foreign_files_say_how_they_normalise(tmp_path: Path) -> None:
    file = torch.load(GoldenCase("audio_unpadded").write_official_file(tmp_path), weights_only=True)
    for says in (None, False, True):
        file["cfg"]["task"] = {} if says is None else {"normalize": says}
        torch.save(file, tmp_path / "official.pt")
        assert load_normalize(tmp_path / "official.pt") is says
    file["cfg"]["task"] = {"normalize": "false"}
    torch.save(file, tmp_path / "official.pt")
    with pytest.raises(ValueError, match=r"official.pt: its option task.normalize is 'false', where true or false"):
        load_normalize(tmp_path / "official.pt")
    save_huggingface(backbone(), tmp_path / "theirs")
    assert load_normalize(tmp_path / "theirs") is None
    (tmp_path / "theirs" / "preprocessor_config.json").write_text('{"do_normalize": false}')
    with pytest.raises(ValueError, match="was trained with False"):
        SpeechCTC(checkpoint=str(tmp_path / "theirs"), vocabulary=VOCABULARY)
    (tmp_path / "theirs" / "preprocessor_config.json").write_text('{"feature_extractor": null}')
    with pytest.raises(ValueError, match=r"preprocessor_config.json: feature_extractor is None"):
        load_normalize(tmp_path / "theirs")


def test_hypotheses_reach_the_logger(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    model = SpeechCTC(backbone(), vocabulary=VOCABULARY)
    logger = pl.loggers.TensorBoardLogger(tmp_path)
    trainer(logger=logger).validate(model, loader([batch_of(["ABC", "CA"])] * 3), verbose=False)
    events = EventAccumulator(logger.log_dir).Reload()
    text = events.Tensors("val/heard/text_summary")[0].tensor_proto.string_val[0].decode()
    assert text.count("said:") == 3
    assert "said:  ABC" in text


def test_what_goes_wrong_is_said(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="exactly one of"):
        SpeechCTC()
    with pytest.raises(ValueError, match="must begin with '<blank>'"):
        SpeechCTC(backbone(), vocabulary=["A", "|"])
    with pytest.raises(FileNotFoundError, match="no file at lettres"):
        SpeechCTC(backbone(), vocabulary="lettres")
    (tmp_path / "letters.txt").write_text("<blank>\n|\nA\n")
    assert SpeechCTC(backbone(), vocabulary=str(tmp_path / "letters.txt")).vocabulary == ["<blank>", "|", "A"]
    model = SpeechCTC(backbone(), vocabulary=VOCABULARY, freeze_trunk_steps=0, optimization=quick())
    batch = batch_of(["ABCAB"])
    short = {**batch, "inputs": batch["inputs"][:, :1500]}
    with pytest.warns(UserWarning, match=r"53\.3 letters a second") as warned:
        trainer(max_steps=1).fit(model, loader([short]))
    assert any("1 of the first 1 transcripts are longer" in str(warning.message) for warning in warned)
    assert all(torch.isfinite(parameter).all() for parameter in model.parameters())
    assert model.head is not None
    with torch.no_grad():
        model.head.bias[0] = 99.0
    with pytest.warns(UserWarning, match=r"100\.0 % of all frames are decoded as blank"):
        trainer().validate(model, loader([batch]), verbose=False)
