"""PictureLogger: the picture shows what was hidden, and gets where it should."""

from __future__ import annotations

import importlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import GRID, Blobs, loader, tiny_model, trainer
from torch.utils.data import DataLoader, default_collate

from d2v_lightning.callbacks import PictureLogger
from d2v_lightning.callbacks.pictures import HIDDEN_GREY, components, heat, panels, to_rgb
from d2v_lightning.flavour import pl
from d2v_lightning.nn.normalization import IMAGENET

BoringModel = importlib.import_module(f"{pl.__name__}.demos.boring_classes").BoringModel


def test_columns_show_what_was_hidden_and_what_was_predicted_wrongly() -> None:
    model = tiny_model().eval()
    batch = default_collate([Blobs()[index] for index in range(3)])
    with torch.no_grad():
        pictures, seen, teacher, student, error = panels(model, batch)
    hidden = batch["mask"][:, 0].view(3, *GRID)
    pixels = hidden.repeat_interleave(2, dim=1).repeat_interleave(2, dim=2)
    assert (seen[pixels] == HIDDEN_GREY).all()
    assert torch.equal(seen[~pixels], pictures[~pixels])
    assert (error[~hidden] == HIDDEN_GREY).all()
    assert not (error[hidden] == HIDDEN_GREY).all(dim=-1).any()
    torch.testing.assert_close(teacher, student)  # an untouched teacher is the student
    assert teacher.std(dim=(0, 1, 2)).min() > 0.05


def test_error_is_measured_at_the_token_it_belongs_to() -> None:
    model = tiny_model().eval()
    batch = default_collate([Blobs()[index] for index in range(2)])
    targets = model.targets(batch)
    _, hidden = model.predictions(batch)
    perfect = targets.flatten(0, 1)[hidden].clone()
    perfect[0] += 10.0
    model.predictions = lambda batch: (perfect, hidden)  # type: ignore[method-assign]
    with torch.no_grad():
        error = panels(model, batch)[-1].flatten(0, 2)
    assert torch.equal(error[hidden[0]], heat(torch.ones(1))[0])
    assert torch.equal(error[hidden[1:]], heat(torch.zeros(len(hidden) - 1)))


def test_colours_follow_the_first_component() -> None:
    strength = torch.linspace(-1, 1, 32).view(2, 16, 1)
    colours = components(strength * torch.randn(1, 1, 8, generator=torch.Generator().manual_seed(0)))[..., 0].flatten()
    steps = colours.diff()
    assert (steps >= 0).all() or (steps <= 0).all()
    assert (colours.min(), colours.max()) == (0.0, 1.0)
    assert torch.equal(components(torch.ones(1, 4, 8)), torch.zeros(1, 4, 3))


@pytest.mark.parametrize("channels", [1, 3, 5])
def test_any_number_of_channels_becomes_colours(channels: int) -> None:
    images = torch.randn(2, channels, 4, 4, generator=torch.Generator().manual_seed(0))
    rgb = to_rgb(images)
    brightest = images[:, 0].flatten().argmax()
    assert rgb[..., 0].flatten()[brightest] == 1.0
    assert torch.equal(rgb[..., 0], rgb[..., 2]) == (channels == 1)


def test_normalised_pictures_are_shown_in_their_own_colours() -> None:
    images = torch.rand(2, 3, 4, 5, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(to_rgb(IMAGENET(images), IMAGENET), images.permute(0, 2, 3, 1))
    assert to_rgb(IMAGENET(images) + 9, IMAGENET).max() == 1.0


def test_png_and_tensorboard_get_the_same_picture_of_the_same_images(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    logger = pl.loggers.TensorBoardLogger(str(tmp_path))
    runner = trainer([PictureLogger(every_n_steps=2, num_pictures=2)], 5, tmp_path, logger=logger)
    runner.fit(tiny_model(), loader())
    files = sorted((Path(logger.log_dir) / "pictures").iterdir())
    assert [file.name for file in files] == ["step_000002.png", "step_000004.png"]
    first, second = (np.asarray(Image.open(file)).astype(int) for file in files)
    half = first.shape[1] * 2 // 5
    body = slice(first.shape[0] // 8, None)  # below the title, which names the step
    assert np.array_equal(first[body, :half], second[body, :half])  # inputs and masks stay
    assert not np.array_equal(first[body, half:], second[body, half:])  # features move
    logger.experiment.flush()
    events = EventAccumulator(logger.log_dir, size_guidance={"images": 0}).Reload().Images("pictures")
    assert [event.step for event in events] == [2, 4]
    assert (events[0].height, events[0].width) == first.shape[:2]


def test_without_a_logger_the_pictures_lie_below_the_root(tmp_path: Path) -> None:
    trainer([PictureLogger(every_n_steps=2, num_pictures=1)], 2, tmp_path).fit(tiny_model(), loader())
    assert (tmp_path / "pictures" / "step_000002.png").stat().st_size > 1000


def test_batches_without_images_are_refused_in_one_line() -> None:
    class Sound(BoringModel):
        def train_dataloader(self) -> DataLoader[torch.Tensor]:
            return DataLoader([{"inputs": torch.zeros(8), "mask": torch.zeros(1, 4, dtype=torch.bool)}] * 4)  # type: ignore[arg-type]

    with pytest.raises(ValueError, match="PictureLogger shows batches of images") as error:
        trainer([PictureLogger()], 2).fit(Sound())
    assert "\n" not in str(error.value)
