"""Images from folders, data sets or scikit-learn's digits. Long because one constructor documents every setting."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch.utils.data import DataLoader

from d2v_lightning.configurable import Configurable
from d2v_lightning.flavour import pl, rank_zero_info
from d2v_lightning.nn.encoders.image import ImageEncoder, patch_grid
from d2v_lightning.nn.normalization import IMAGENET, Normalization, normalization_of
from d2v_lightning.recipes import FromRecipe
from d2v_lightning.support.errors import NotFoundError, UserError, at_least
from datamodules.image.keyed_images import KeyedImages
from datamodules.image.sources import ImageSource, PictureFiles, SubsetSource, split_folder
from datamodules.image.splits import Split, hold_out, open_dataset, open_folder, open_streams, require_classes
from datamodules.image.streaming import StreamedImages
from datamodules.image.transforms import (
    MODES,
    ImageTransform,
    Interpolation,
    classify_transform,
    evaluation_transform,
    pretrain_transform,
)
from datamodules.shared.accumulation import accumulate_to
from datamodules.shared.arguments import enough_for_a_batch, held_out_share, one_of
from datamodules.shared.attached import attached_model
from datamodules.shared.collators import BlockMaskCollator, ImageCollator, InverseBlockMaskCollator
from datamodules.shared.files import PICTURES, expanded
from datamodules.shared.loader import ResumableLoader, resume_exactly
from datamodules.shared.predicting import PlaceBatches, PredictLoader, done_before, files_to_predict
from datamodules.shared.samplers import EpochBatchSampler, derived_seed
from datamodules.shared.streaming import StreamingLoader, count_rows
from datamodules.shared.tables import SPLIT_NAMES
from datamodules.shared.workers import SafeLoader

Size = int | tuple[int, int]


class ImageDataModule(FromRecipe, Configurable, pl.LightningDataModule):
    """Batches of images, with block masks for pre-training or with labels for classification.

    Batches: "inputs" (B, C, H, W) float32, "index" (B,), and "labels" (B,) where the pictures have classes. For
    pre-training also "mask" (B, M, N) bool, True = hidden. Everything random about a sample follows from (seed, epoch,
    index). A run that is stopped anywhere goes on with the batches it would have had (`ResumableLoader`).

    Defaults are those of data2vec 1.0's released commands for ImageNet; what 2.0 does otherwise (crops, no jitter, masks)
    stands in its recipes. What pictures are normalised with belongs to the model (`ImageEncoder.mean` and `std`, which every
    file of it holds), so that no evaluation sees other pictures than training did. A model that does not know yet learns it
    here.

    Pictures that cannot be read, or have fewer pixels than patches, are counted and named in one warning. In training
    another one takes the place, and "index" is then that of the replacement. In evaluation the other one does not count, and
    in prediction there is none. A folder that vanishes ends the run.

    Args:
        root: folder of pictures. Pre-training: root/train/<class>/*, root/<class>/* or any other tree. Classification:
            root/{train,val,test}/<class>/*; "validation", "valid" and "dev" are understood too.
        dataset: instead of `root`: "digits" (scikit-learn's, 8x8 grey), a folder made by `datasets.save_to_disk`,
            parquet (a file, or a folder of them), or a name on the Hugging Face hub.
        dataset_config: configuration of a data set on the hub.
        streaming: read `dataset` while training instead of before, see `StreamingLoader`. There are no probes then.
        samples_per_epoch: of a stream; by default all there are, counted first where its description does not say.
        shuffle_buffer: rows of a stream that are shuffled among each other.
        image_column: of a Hugging Face data set; by default the only one with pictures.
        label_column: likewise; by default the only ClassLabel, or "label".
        task: "pretrain" makes masks, "classify" uses the classification augmentation.
        image_size: pixels, one number or (height, width). By default this and the next two are read off the model's
            `encoder`.
        patch_size: pixels.
        num_channels: 1, 3 or 4; pictures are converted.
        batch_size: images per device.
        effective_batch: images per optimiser step over all devices: sets the Trainer's `accumulate_grad_batches`.
        val_fraction: share of the training pictures to hold out where there is no validation split.
        predict_files: pictures to predict, a folder, a file, a pattern or a list of them; by default the test split,
            or all of `root`.
        scale: range of the random crop's share of the picture.
        flip: probability of a horizontal flip.
        colour_jitter: strength; in classification only where `rand_augment` is off.
        rand_augment: timm's policy (classification); `None` is off.
        random_erasing: probability (classification).
        crop_share: evaluation shows the central `crop_share` of a picture, 224 of 256 pixels.
        mean: per channel, of values in 0..1. By default the model's; where it has none ImageNet's, as in the released
            pre-training (for another number of channels than 3 their average).
        std: likewise.
        interpolation: of all resizing.
        masking: what is hidden: "blocks" (1.0), or all but squares of patches: "inverse_blocks" (2.0).
        num_masked_patches: hidden patches; by default 120 (1.0) or 157 (2.0) of 196, scaled to the grid.
        mask_ratio: the same as a share.
        min_block: patches in the smallest block; by default 16 of 196, scaled.
        max_block: patches in the largest block; by default as many as are still to be hidden.
        min_aspect: of blocks.
        visible_block: side in patches of the squares that "inverse_blocks" leave visible.
        num_masks: M.
        probe_samples: most pictures in either of `probe_dataloaders`.
        num_workers: processes that load.
        seed: of order, augmentation, masks, and of what is held out.

    Raises:
        ValueError: arguments contradict each other or are out of range.
    """

    def __init__(
        self,
        root: str | None = None,
        dataset: str | None = None,
        dataset_config: str | None = None,
        streaming: bool = False,
        samples_per_epoch: int | None = None,
        shuffle_buffer: int = 10_000,
        image_column: str | None = None,
        label_column: str | None = None,
        task: Literal["pretrain", "classify"] = "pretrain",
        image_size: int | tuple[int, int] | None = None,
        patch_size: int | tuple[int, int] | None = None,
        num_channels: int | None = None,
        batch_size: int = 128,
        effective_batch: int | None = None,
        val_fraction: float | None = None,
        predict_files: str | list[str] | None = None,
        scale: tuple[float, float] = (0.08, 1.0),
        flip: float = 0.5,
        colour_jitter: float = 0.4,
        rand_augment: str | None = "rand-m9-mstd0.5-inc1",
        random_erasing: float = 0.25,
        crop_share: float = 0.875,
        mean: list[float] | None = None,
        std: list[float] | None = None,
        interpolation: Interpolation = "bicubic",
        masking: Literal["blocks", "inverse_blocks"] = "blocks",
        num_masked_patches: int | None = None,
        mask_ratio: float | None = None,
        min_block: int | None = None,
        max_block: int | None = None,
        min_aspect: float = 0.3,
        visible_block: int = 3,
        num_masks: int = 1,
        probe_samples: int = 10_000,
        num_workers: int = 8,
        seed: int = 0,
    ) -> None:
        super().__init__()
        one_of(("pretrain", "classify"), task=task)
        one_of(("blocks", "inverse_blocks"), masking=masking)
        held_out_share(val_fraction)
        at_least(1, samples_per_epoch=samples_per_epoch, shuffle_buffer=shuffle_buffer, probe_samples=probe_samples)
        at_least(1, batch_size=batch_size, effective_batch=effective_batch)
        at_least(0, num_workers=num_workers)
        if root is not None and dataset is not None:
            raise UserError(f"root {root!r} and dataset {dataset!r}: give one of them, and set the other to null")
        if not 0 < scale[0] <= scale[1] <= 1:
            raise UserError(f"scale {tuple(scale)}: permitted is 0 < lower <= upper <= 1")
        if not 0 < crop_share <= 1:
            raise UserError(f"crop_share {crop_share}: permitted is 0 < crop_share <= 1")
        given = normalization_of(mean, std, None)
        for name, share in (("flip", flip), ("random_erasing", random_erasing)):
            if not 0 <= share <= 1:
                raise UserError(f"{name} {share}: permitted is 0..1")
        if streaming and (dataset is None or dataset == "digits" or val_fraction is not None):
            raise UserError("streaming is for a Hugging Face `dataset` without val_fraction: leave one of them out")
        for name, size in (("image_size", image_size), ("patch_size", patch_size)):
            if size is not None and min(_pair(size)) < 1:
                raise UserError(f"{name} {size}: permitted is 1 or more")
        self.save_hyperparameters(logger=False)

        self.root, self.dataset, self.dataset_config = root, dataset, dataset_config
        self.streaming, self.samples_per_epoch, self.shuffle_buffer = streaming, samples_per_epoch, shuffle_buffer
        self.image_column, self.label_column = image_column, label_column
        self.task = task
        self.image_size, self.patch_size, self.num_channels = image_size, patch_size, num_channels
        self.batch_size, self.effective_batch = batch_size, effective_batch
        self.val_fraction, self.predict_files = val_fraction, predict_files
        self.scale, self.flip, self.colour_jitter = (scale[0], scale[1]), flip, colour_jitter
        self.rand_augment, self.random_erasing = rand_augment, random_erasing
        self.crop_share, self.mean, self.std, self.interpolation = crop_share, mean, std, interpolation
        self.masking, self.visible_block = masking, visible_block
        self.num_masked_patches, self.mask_ratio = num_masked_patches, mask_ratio
        self.min_block, self.max_block, self.min_aspect, self.num_masks = min_block, max_block, min_aspect, num_masks
        self.probe_samples, self.num_workers, self.seed = probe_samples, num_workers, seed

        self.predict_paths: list[str] = []
        self._size: tuple[int, int] | None = None
        self._grid: tuple[int, int] = (1, 1)
        self._channels = 3 if num_channels is None else num_channels
        self._normalization = given or IMAGENET.of_channels(self._channels)
        self._sources: Mapping[Split, ImageSource] = {}
        self._streams: dict[Split, Any] = {}
        self._predict_source: ImageSource | None = None

    # ------------------------------------------------------------------ setup

    def setup(self, stage: str | None = None) -> None:
        """Finds the pictures, agrees with the model on their size, and sets accumulation for `effective_batch`.

        Raises:
            ValueError: data and model do not fit, nothing is readable, or `effective_batch` is smaller than one batch.
            FileNotFoundError: a folder, a split or all pictures are missing.
        """
        resume_exactly(self.trainer)
        if self.root is None and self.dataset is None and (self.predict_files is None or stage != "predict"):
            raise UserError(
                "no data: set root to a folder of pictures, or dataset to 'digits', a path or a name on the hub"
            )
        self._fit_to_model(stage)
        if stage in ("predict", None) and (self.predict_files is not None or stage == "predict"):
            self._open_predict_source()
        if stage == "predict" or (self.root is None and self.dataset is None):
            return
        if self.streaming and not self._streams:
            assert self.dataset is not None
            self._streams = open_streams(self.dataset, self.dataset_config)
        if not self.streaming and not self._sources:
            self._sources = self._open_sources()
        needed: dict[str | None, Sequence[Split]] = {"fit": ("train",), "validate": ("val",), "test": ("test",)}
        for split in needed.get(stage, ()):
            self._require(split)
        if stage == "fit" and self.task == "classify":
            self._require("val")
        if not self.streaming:
            self._check(stage)
        if stage == "fit" and self.effective_batch is not None:
            accumulate_to(self.trainer, "batch_size", self.batch_size, self.effective_batch, "images")

    def _check(self, stage: str | None) -> None:
        """Looks at the splits that a stage reads, and at no other: the labels of a test split may be withheld."""
        read: dict[str | None, Sequence[Split]] = {"validate": ("val",), "test": ("test",)}
        for split in read.get(stage, ("train", "val")):
            if split not in self._sources:
                continue
            source = self._sources[split]
            self._images(source).check_some()
            if self.task == "classify":
                require_classes(self._sources, split, str(self.root or self.dataset))

    def _fit_to_model(self, stage: str | None) -> None:
        """Takes sizes, channels, mean and std from the model's encoder, or checks that they agree with it."""
        module = attached_model(self)
        encoder = getattr(module, "encoder", None)
        size = _agreed("image_size", self.image_size, getattr(encoder, "image_size", None))
        patch = _agreed("patch_size", self.patch_size, getattr(encoder, "patch_size", None))
        channels = _agreed("num_channels", self.num_channels, getattr(encoder, "in_channels", None))
        if size is None:
            raise UserError("image_size is not known: set it, or attach a model with an `encoder`")
        if patch is None and self.task == "pretrain":
            raise UserError("patch_size is not known: set it, or attach a model with an `encoder`")
        self._channels = 3 if channels is None else channels[0]
        if self._channels not in MODES:
            raise UserError(f"num_channels {self._channels}: pictures have {', '.join(map(str, MODES))}")
        self._size, self._grid = size, (1, 1)
        if patch is not None:
            self._grid = patch_grid(size, patch)
        self._normalization = self._agreed_normalization(encoder, stage)
        if isinstance(encoder, ImageEncoder):
            encoder.normalization = self._normalization
        if self.task == "pretrain":
            self._collator()

    def _agreed_normalization(self, encoder: Any, stage: str | None) -> Normalization:
        """That of data and model. In pre-training the data may bring another one to weights that it starts from."""
        given = normalization_of(self.mean, self.std, self._channels)
        models: Normalization | None = getattr(encoder, "normalization", None)
        if given is not None and models is not None and not given.agrees(models):
            if self.task != "pretrain" or stage not in ("fit", None):
                raise UserError(
                    f"data.mean and data.std are {given}, the model's are {models}: leave them out of the data (a "
                    "classifier takes others as model.mean and model.std when its training starts)"
                )
            rank_zero_info(f"pictures are normalised with {given}, as data says; the model started from {models}")
        return given or models or IMAGENET.of_channels(self._channels)

    def _open_sources(self) -> Mapping[Split, ImageSource]:
        sources: Mapping[Split, ImageSource]
        if self.root is not None:
            names = getattr(attached_model(self), "class_names", None)
            sources = open_folder(expanded(self.root), self.task == "classify", names)
        else:
            assert self.dataset is not None
            sources = open_dataset(self.dataset, self.dataset_config, self.image_column, self.label_column)
        if "val" not in sources and "train" in sources and self.val_fraction is not None:
            sources = hold_out(sources, self.val_fraction, self.seed)
        return sources

    def _open_predict_source(self) -> None:
        files = self.predict_files
        if files is None and self.dataset is not None:
            if not self._sources and not self.streaming:
                self._sources = self._open_sources()
            self._predict_source = self._source("test")
        else:
            if files is None:
                assert self.root is not None
                files = str(split_folder(expanded(self.root), "test") or self.root)
            self._predict_source = PictureFiles(files_to_predict(files, PICTURES, "picture"))
        self.predict_paths = [self._predict_source.name(index) for index in range(len(self._predict_source))]

    # ------------------------------------------------------------------ loaders

    def train_dataloader(self) -> ResumableLoader:
        """Shuffled and augmented; masks for pre-training.

        Raises:
            ValueError: there are fewer pictures than one batch on every device needs.
        """
        if self.streaming:
            return self._stream_loader("train", training=True)
        source = self._source("train")
        enough_for_a_batch(self.trainer, self.batch_size, len(source), "training pictures")
        return self._source_loader(source, training=True)

    def val_dataloader(self) -> ResumableLoader | list[ResumableLoader]:
        """Not augmented; in pre-training with masks, the same in every epoch; nothing without a validation split."""
        return self._evaluation_loader("val") if "val" in (self._streams or self._sources) else []

    def test_dataloader(self) -> ResumableLoader:
        """As `val_dataloader`, of the test split."""
        return self._evaluation_loader("test")

    def predict_dataloader(self) -> PredictLoader:
        """Pictures without masks; "index" refers to `predict_paths`. Those that a stopped run has predicted are left out."""
        source = self._predict_source
        if source is None:
            raise UserError("nothing to predict: call setup('predict') first")
        done = np.zeros(len(source), bool)
        if isinstance(source, PictureFiles):  # a row of a data set has no version that would tell it from another's
            settings = {"size": self._size, "channels": self._channels, **self.seen_as}
            done = done_before(self, self.predict_paths, settings, len(source))
        images = self._images(source, replace=False, labelled=False)
        return PredictLoader(
            SafeLoader(
                images,
                batch_sampler=PlaceBatches(done, self.batch_size),
                collate_fn=ImageCollator(report_unreadable=True),
                num_workers=self.num_workers,
                pin_memory=torch.cuda.is_available(),
                generator=torch.Generator(),
            )
        )

    def probe_dataloaders(self) -> tuple[DataLoader[Any], DataLoader[Any]]:
        """Labelled pictures, not augmented, no masks, for probes: (train, validation), or test where there is no
        validation.

        At most `probe_samples` of each, chosen by the seed alone. Every rank gets all of them.

        Raises:
            ValueError: the pictures have no classes, or there is one split only.
        """
        held_out = self._sources.get("val") or self._sources.get("test")
        train = self._source("train")
        if held_out is None:
            raise UserError("probes need a second split: add val or test pictures, or set val_fraction")
        if train.labels is None or held_out.labels is None:
            raise UserError("probes need classes, and these pictures have none: leave the probes out")
        return self._probe_loader(train), self._probe_loader(held_out)

    def _probe_loader(self, source: ImageSource) -> DataLoader[Any]:
        order = sorted(range(len(source)), key=lambda place: derived_seed("probe", self.seed, place))
        chosen = SubsetSource(source, sorted(order[: self.probe_samples]))
        return SafeLoader(
            self._images(chosen),
            batch_size=self.batch_size,
            collate_fn=ImageCollator(),
            num_workers=self.num_workers,
        )

    def _evaluation_loader(self, split: Split) -> ResumableLoader:
        if self.streaming:
            return self._stream_loader(split, training=False)
        return self._source_loader(self._source(split), training=False)

    def _stream_loader(self, split: Split, training: bool) -> StreamingLoader:
        images = self._streamed(split, training)
        samples = (self.samples_per_epoch if training else None) or count_rows(images.stream)
        if training:
            enough_for_a_batch(self.trainer, self.batch_size, samples, "pictures of an epoch")
        return StreamingLoader(
            images,
            samples,
            self._collator(),
            self.num_workers,
            pin_memory=torch.cuda.is_available(),
            endless=training and self.trainer is not None,
        )

    def _streamed(self, split: Split, training: bool) -> StreamedImages:
        self._require(split)
        return StreamedImages(
            self._streams[split],
            self._transform(training),
            self._channels,
            self.batch_size,
            self._grid,
            self.seed,
            training,
            self.shuffle_buffer,
            self.image_column,
            self.label_column,
            labelled=self.task == "classify",
        )

    def _source_loader(self, source: ImageSource, training: bool) -> ResumableLoader:
        return ResumableLoader(
            self._images(source, training),
            EpochBatchSampler(len(source), self.batch_size, self.seed, shuffle=training),
            self._collator(),
            self.num_workers,
            pin_memory=torch.cuda.is_available(),
            endless=training and self.trainer is not None,
        )

    def _images(
        self, source: ImageSource, training: bool = False, replace: bool = True, labelled: bool = True
    ) -> KeyedImages:
        transform = self._transform(training)
        return KeyedImages(source, transform, self._channels, self._grid, self.seed, replace, labelled)

    @property
    def seen_as(self) -> dict[str, Any]:
        """How evaluation and prediction show pictures: "crop_share", "interpolation", "mean" and "std" of each channel."""
        seen = {"crop_share": self.crop_share, "interpolation": self.interpolation}
        return {**seen, **self._normalization._asdict()}

    def _transform(self, training: bool) -> ImageTransform:
        assert self._size is not None
        mean, std = self._normalization
        if not training:
            return evaluation_transform(self._size, self.crop_share, mean, std, self.interpolation)
        if self.task == "pretrain" or (self.rand_augment is None and not self.random_erasing):
            return pretrain_transform(
                self._size, self.scale, self.flip, self.colour_jitter, mean, std, self.interpolation
            )
        return classify_transform(
            self._size,
            self.scale,
            self.flip,
            self.colour_jitter,
            self.rand_augment,
            self.random_erasing,
            mean,
            std,
            self.interpolation,
        )

    def _collator(self) -> ImageCollator:
        if self.task != "pretrain":
            return ImageCollator(report_unreadable=True)
        if self.masking == "inverse_blocks":
            return InverseBlockMaskCollator(
                self._grid,
                self.num_masked_patches,
                self.mask_ratio,
                self.visible_block,
                self.num_masks,
                self.seed,
                report_unreadable=True,
            )
        return BlockMaskCollator(
            self._grid,
            self.num_masked_patches,
            self.mask_ratio,
            self.min_block,
            self.max_block,
            self.min_aspect,
            self.num_masks,
            self.seed,
            report_unreadable=True,
        )

    # ------------------------------------------------------------------ what is in it

    @property
    def class_names(self) -> list[str]:
        """Names of the classes after setup, in the order of their numbers; empty where the pictures have none."""
        if self._streams:
            return list(self._streamed(next(iter(self._streams)), training=False).class_names)
        return list(next((source.class_names for source in self._sources.values()), ()))

    @property
    def num_classes(self) -> int:
        """How many classes there are."""
        return len(self.class_names)

    def _source(self, split: Split) -> ImageSource:
        if self.streaming:
            raise UserError("a stream cannot be read at will, as probes and predictions do: set streaming to false")
        self._require(split)
        return self._sources[split]

    def _require(self, split: Split) -> None:
        opened = self._streams or self._sources
        if split in opened:
            return
        where, there = self.root or self.dataset, ", ".join(opened) or "none"
        names = " or ".join(SPLIT_NAMES[split])
        remedy = " or set val_fraction" if split == "val" else ""
        folder = f" as {self.root}/{SPLIT_NAMES[split][0]}/<class>/" if self.root else ""
        raise NotFoundError(f"{where} has no {split} split ({names}; splits found: {there}): add it{folder}{remedy}")


def _agreed(name: str, mine: Size | None, models: Size | None) -> tuple[int, int] | None:
    """The DataModule's value or the model's, as a pair; they may not differ."""
    own, other = (None if value is None else _pair(value) for value in (mine, models))
    if own is not None and other is not None and own != other:
        raise UserError(f"{name} {mine} of the data is not the model's {models}: leave it out, or make them equal")
    return own or other


def _pair(value: Size) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (value[0], value[1])
