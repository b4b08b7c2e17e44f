"""What every test leaves as it found it, and a disk that is full."""

from __future__ import annotations

import importlib
import logging
import os
import signal
from collections.abc import Callable, Iterator

import pytest
from torch.utils.data import DataLoader

LIGHTNING = os.environ.get("LIGHTNING", "pytorch_lightning")
importlib.import_module(LIGHTNING)  # before ours: see d2v_lightning/flavour.py

from d2v_lightning.flavour import fabric, pl  # noqa: E402
from datamodules.shared.workers import SafeLoader  # noqa: E402

assert pl.__name__ == LIGHTNING, f"{pl.__name__} was imported before {LIGHTNING}, which the tests were to run with"

HANDLED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)


def pytest_configure(config: pytest.Config) -> None:
    """Not in pyproject.toml: pytest would import one of the two Lightnings to find the class."""
    config.addinivalue_line("filterwarnings", f"ignore::{fabric.__name__}.utilities.warnings.PossibleUserWarning")


@pytest.fixture(autouse=True)
def signals_are_handled_as_before() -> Iterator[None]:
    """A command leaves its own handlers, since its process ends with it."""
    before = {number: signal.getsignal(number) for number in HANDLED}
    # A suite that was started in the background, or by nohup, would ignore these two, and so would what it tests.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture(autouse=True)
def loggers_speak_as_before() -> Iterator[None]:
    """Scripts make Lightning's loggers quiet, since their process ends with them."""
    loggers = [logging.getLogger(package.__name__) for package in (pl, fabric)]
    before = [logger.level for logger in loggers]
    yield
    for logger, level in zip(loggers, before, strict=True):
        logger.setLevel(level)


@pytest.fixture(autouse=True)
def loaders_are_made_as_before() -> Iterator[None]:
    """Lightning patches these methods while a datamodule makes its loaders, and leaves them patched where that raises."""
    methods = [(kind, name) for kind in (DataLoader, SafeLoader) for name in ("__init__", "__setattr__", "__delattr__")]
    before = [kind.__dict__.get(name) for kind, name in methods]
    yield
    for (kind, name), method in zip(methods, before, strict=True):
        if kind.__dict__.get(name) is not method:
            setattr(kind, name, method) if method is not None else delattr(kind, name)
        if f"__old{name}" in kind.__dict__:
            delattr(kind, f"__old{name}")


@pytest.fixture
def small_files() -> Iterator[Callable[[int], None]]:
    """Sets how many bytes a file may have: a write past that fails as on a full disk."""
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[0][1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before[0])
    signal.signal(signal.SIGXFSZ, before[1])
