"""SaveAtEnd: the last step is in a checkpoint, once, whatever the interval."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from d2v_lightning.callbacks import SaveAtEnd
from d2v_lightning.flavour import pl
from tests.pretrain.test_resume import run


@pytest.mark.parametrize("save_last", [True, "link"])
def test_the_end_is_saved_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, save_last: Any) -> None:
    written: list[tuple[str, int]] = []
    save = pl.Trainer.save_checkpoint

    def note(self: pl.Trainer, path: Any, *args: Any, **options: Any) -> None:
        written.append((Path(path).name, self.global_step))
        save(self, path, *args, **options)

    monkeypatch.setattr(pl.Trainer, "save_checkpoint", note)
    for folder, stop in (("between", 3), ("with", 4)):
        written.clear()
        keeper = pl.callbacks.ModelCheckpoint(
            tmp_path / folder, save_last=save_last, every_n_train_steps=2, filename="{step}"
        )
        run(tmp_path / folder, stop, 1, 0, callbacks=[SaveAtEnd(), keeper])
        assert torch.load(tmp_path / folder / "last.ckpt", weights_only=True)["global_step"] == stop
        names = ["step={}.ckpt"] if save_last == "link" else ["step={}.ckpt", "last.ckpt"]
        regular = [(name.format(step), step) for step in (2, 4) if step <= stop for name in names]
        assert written == regular + ([(names[-1].format(3), 3)] if stop == 3 else [])
