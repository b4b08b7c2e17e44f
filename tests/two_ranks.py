"""Processes (gloo) for tests, forked from a server that has imported everything: seconds, not half a minute each."""

from __future__ import annotations

import multiprocessing
import os
import socket
from collections.abc import Callable
from typing import Any

from d2v_lightning.flavour import pl

PRELOADED = ["torch", pl.__name__, "d2v_lightning", "datamodules"]


def in_ranks(world_size: int, function: Callable[..., None], *arguments: Any) -> None:
    """Run `function(*arguments)` in so many processes that see torchrun's variables, and wait for all of them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    multiprocessing.set_forkserver_preload(PRELOADED)
    context = multiprocessing.get_context("forkserver")
    ranks = [
        context.Process(target=_as_rank, args=(rank, world_size, port, function, arguments))
        for rank in range(world_size)
    ]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join()
    assert [rank.exitcode for rank in ranks] == [0] * world_size


def _as_rank(rank: int, world_size: int, port: int, function: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    names = {
        "RANK": rank,
        "LOCAL_RANK": rank,
        "GROUP_RANK": 0,
        "WORLD_SIZE": world_size,
        "LOCAL_WORLD_SIZE": world_size,
    }
    names |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "TORCHELASTIC_RUN_ID": "tests", "OMP_NUM_THREADS": 1}
    os.environ.update({name: str(value) for name, value in names.items()})
    function(*arguments)


class TwoRanks(pl.strategies.DDPStrategy):
    """DDP whose processes come from a fork server. Each takes weights of its own: the model reaches both in shared memory,
    which Lightning undoes for spawned processes alone. The server keeps the environment in which the first of them began, so
    that a seed set since does not reach them: compare nothing random across starts."""

    def __init__(self, **options: Any) -> None:
        multiprocessing.set_forkserver_preload(PRELOADED)
        super().__init__(start_method="forkserver", **options)

    def setup(self, trainer: pl.Trainer) -> None:
        assert self.model is not None
        for tensor in (*self.model.parameters(), *self.model.buffers()):
            tensor.data = tensor.data.clone()
        super().setup(trainer)
