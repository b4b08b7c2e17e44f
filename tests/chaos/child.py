"""Runs commands of the project in forked children of a process that has imported everything: seconds less for each."""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import importlib
import multiprocessing.util
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("WANDB_MODE", "offline")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

COMMANDS = {
    "cli": "d2v_lightning.commands.command_line",
    "checkpoints": "d2v_lightning.commands.checkpoint",
    "features": "d2v_lightning.commands.features",
    "tokenizer": "d2v_lightning.commands.tokenizer",
}
_NAMESPACE, _PRIVATE = 0x00020000, (1 << 18) | 16384


def warm() -> None:
    """Import what the commands import, on one thread: children are forked from here."""
    os.nice(10)
    import torch

    torch.set_num_threads(1)
    names = "numpy soundfile soxr tokenizers transformers yaml PIL.Image sklearn.datasets torchvision.transforms.v2"
    for name in [*names.split(), *COMMANDS.values(), "d2v_lightning", "datamodules"]:
        importlib.import_module(name)
    import datasets

    datasets.config.SLEEP_TIME_ON_THREADS_SHUTDOWN = 0  # 5 s whenever a stream is left
    from transformers import AutoTokenizer, PreTrainedTokenizerFast  # noqa: F401  # loaded when asked for


class Child:
    """A running command.

    Args:
        command: one of `COMMANDS`, or a function that returns an exit status.
        arguments: of the command.
        folder: working directory; output goes to `log`.
        before: called in the child before the command.
    """

    def __init__(
        self,
        command: str | Callable[..., int],
        arguments: Sequence[Any],
        folder: Path,
        log: Path,
        before: Callable[[], Any] | None = None,
    ) -> None:
        self.log = log
        self.code: int | None = None
        self.seconds, self.memory = 0.0, 0
        self._start = time.monotonic()
        sys.stdout.flush()
        self.pid = os.fork()
        if self.pid == 0:
            try:
                self._run(command, arguments, folder, before)
            finally:
                os._exit(99)

    def _run(self, command: Any, arguments: Sequence[Any], folder: Path, before: Callable[[], Any] | None) -> None:
        os.setsid()
        output = os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        null = os.open(os.devnull, os.O_RDONLY)
        for number, source in ((0, null), (1, output), (2, output)):
            os.dup2(source, number)
        sys.stdout = os.fdopen(1, "w", buffering=1, closefd=False)
        sys.stderr = os.fdopen(2, "w", buffering=1, closefd=False, errors="backslashreplace")
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
        os.chdir(folder)
        code: Any = 0
        try:
            if before is not None:
                before()
            code = _called(command, arguments)
        except SystemExit as stop:
            code = stop.code
        except BaseException:
            traceback.print_exc()
            code = 1
        threading._shutdown()  # type: ignore[attr-defined]
        multiprocessing.util._exit_function()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()
        with contextlib.suppress(OSError):
            sys.stdout.flush()
        os._exit(code or 0)

    def alive(self) -> bool:
        if self.code is None:
            pid, status, usage = os.wait4(self.pid, os.WNOHANG)
            if pid:
                self.seconds, self.memory = time.monotonic() - self._start, usage.ru_maxrss * 1024
                self.code = -os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)
        return self.code is None

    def wait(self, seconds: float = 120.0, until: Callable[[], Any] = lambda: False) -> int | None:
        """Exit status as a shell says it; None where it runs still after `seconds`, or when `until` came true."""
        end = time.monotonic() + seconds
        while self.alive() and time.monotonic() < end and not until():
            time.sleep(0.01)
        return self.code

    def finish(self, seconds: float = 120.0) -> Child:
        """Wait, then kill what is left of it and its family; `code` stays None where it hung."""
        self.wait(seconds)
        hung = self.code is None
        for pid in self.family():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if hung:
            os.wait4(self.pid, 0)
        return self

    def kill(self, number: int, group: bool = False) -> None:
        with contextlib.suppress(ProcessLookupError):
            (os.killpg if group else os.kill)(self.pid, number)

    def family(self) -> list[int]:
        """Processes of its session that still run."""
        found = []
        for entry in filter(str.isdigit, os.listdir("/proc")):
            with contextlib.suppress(OSError):
                fields = Path(f"/proc/{entry}/stat").read_text().rpartition(")")[2].split()
                if int(fields[3]) == self.pid and fields[0] != "Z":
                    found.append(int(entry))
        return found

    @property
    def text(self) -> str:
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    @property
    def traceback(self) -> bool:
        return "Traceback (most recent" in self.text

    @property
    def error(self) -> str:
        """The line that says what was wrong, or the last one."""
        lines = [line for line in self.text.splitlines() if line.strip()]
        return next((line for line in reversed(lines) if line.startswith("error:")), (lines or [""])[-1])


def run(
    command: Any, arguments: Sequence[Any], folder: Path, log: Path, seconds: float = 120.0, **options: Any
) -> Child:
    log.unlink(missing_ok=True)
    return Child(command, arguments, folder, log, **options).finish(seconds)


def _called(command: Any, arguments: Sequence[Any]) -> Any:
    if callable(command):
        return command(*arguments)
    sys.argv = [f"{command}.py", *map(str, arguments)]
    sys.path.append(os.getcwd())
    return importlib.import_module(COMMANDS[command]).main([str(argument) for argument in arguments])


# ---- what a child does to itself before the command ------------------------------------------------------------------


def bound_by_permissions() -> None:
    """Give up the capabilities that let root pass over permission bits."""
    libc = ctypes.CDLL("libc.so.6", use_errno=True)
    header, data = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
    assert libc.capget(header, data) == 0
    for place in range(3):
        data[place] &= ~0b1110  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH, CAP_FOWNER
    assert libc.capset(header, data) == 0


def own_mounts() -> None:
    """What this process and its children mount from now on is theirs alone, and gone with them. Needs root."""
    libc = ctypes.CDLL("libc.so.6", use_errno=True)
    assert libc.unshare(_NAMESPACE) == 0, "a mount needs root"
    assert libc.mount(b"none", b"/", None, _PRIVATE, None) == 0


def mount(where: Path | str, size: str, flags: int = 0) -> None:
    """A file system of `size` in memory over a folder."""
    Path(where).mkdir(parents=True, exist_ok=True)
    libc = ctypes.CDLL("libc.so.6", use_errno=True)
    done = libc.mount(b"tmpfs", os.fsencode(where), b"tmpfs", flags, f"size={size}".encode())
    assert done == 0, os.strerror(ctypes.get_errno())
