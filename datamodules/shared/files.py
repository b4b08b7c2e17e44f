"""What a folder holds: the one walk for pictures, recordings and transcripts. Nothing is opened."""

from __future__ import annotations

import errno
import fnmatch
import glob
import os
import stat
import unicodedata
from array import array
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from d2v_lightning.flavour import rank_zero_info, rank_zero_warn
from d2v_lightning.support.errors import NotFoundError, UserError
from d2v_lightning.support.lines import listed

PICTURES = (
    *(".apng", ".avif", ".avifs", ".bmp", ".dds", ".dib", ".gif", ".icns", ".ico", ".j2c", ".j2k", ".jfif", ".jp2"),
    *(".jpc", ".jpe", ".jpeg", ".jpf", ".jpg", ".jpx", ".mpo", ".pbm", ".pcx", ".pgm", ".png", ".pnm", ".ppm", ".psd"),
    *(".qoi", ".ras", ".sgi", ".tga", ".tif", ".tiff", ".webp", ".xbm", ".xpm"),
)
"""Endings of pictures that Pillow reads."""
RECORDINGS = (
    *(".aif", ".aifc", ".aiff", ".au", ".caf", ".flac", ".mp1", ".mp2", ".mp3", ".oga", ".ogg", ".opus", ".rf64"),
    *(".snd", ".sph", ".voc", ".w64", ".wav", ".wave"),
)
"""Endings of recordings that libsndfile reads."""
TRANSCRIPTS = ".trans.txt"
PASSED_BY = {"__MACOSX", "@eaDir", "#recycle", "$RECYCLE.BIN", "System Volume Information", "lost+found", "Thumbs.db"}
"""What operating systems leave behind, besides hidden files and folders."""
NAMES_IN_WARNING = 5
GONE_IN_A_ROW = 32

_Id = tuple[int, int]  # device and inode


class FolderGoneError(NotFoundError):
    """A folder that held data when the run started holds nothing now, or cannot be reached.

    Other samples must not take the place of all that it held.
    """


def expanded(path: str | os.PathLike[str]) -> Path:
    """The path, with `~` as the home folder."""
    return Path(os.path.expanduser(path))


def composed(name: str) -> str:
    """A name in composed letters (NFC): macOS writes names decomposed, and both forms look the same."""
    return name if name.isascii() else unicodedata.normalize("NFC", name)


def in_order(paths: Iterable[str]) -> list[str]:
    """Paths sorted by the names of their folders, then of their files; the same on every machine."""
    return sorted(paths, key=lambda path: (composed(path).replace(os.sep, "\0"), path))


def is_file(path: str | os.PathLike[str]) -> bool:
    """Whether it is a regular file, or a link to one: a pipe or device would be read without end.

    Raises:
        ValueError: it lies in a folder that may not be entered.
    """
    try:
        return stat.S_ISREG(os.stat(path).st_mode)
    except PermissionError as error:
        raise _unreadable(os.fspath(path), error) from error
    except (OSError, ValueError):  # not there, a link to itself, or no name that a file can have
        return False


def read_bytes(path: str) -> bytes:
    """The content of a file.

    Raises:
        OSError: it cannot be read.
        ValueError: it is a folder, pipe or device.
    """
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise UserError("it is no file: folders, pipes and devices are not read")
    with open(path, "rb") as file:
        return file.read()


def refuse_gone(path: str, error: Exception) -> None:
    """Raise `FolderGoneError` where a file could not be read because its whole folder is gone.

    Args:
        path: of the file.
        error: what reading it raised.
    """
    if os.path.isfile(path):
        return
    folder = os.path.dirname(path) or os.curdir
    try:
        with os.scandir(folder) as entries:
            if next(entries, None) is not None:
                return
        reason = "is empty"
    except OSError as gone:
        reason = f"cannot be read ({gone.strerror})"
    raise FolderGoneError(
        f"{folder} {reason}, though it held data when the run started: see that it is back"
    ) from error


class GoneFiles:
    """Counts files in a row that are gone. Files that vanish one by one end a run, as a folder that vanishes does."""

    def __init__(self) -> None:
        self._in_a_row = 0

    def note(self, error: Exception | None, entry: str = "") -> None:
        """To be called for every file that is asked for, but not for those that stand in for another.

        Args:
            error: what reading the file raised; None where it was read.
            entry: the file and the reason, for the message.

        Raises:
            FolderGoneError: it is the last of `GONE_IN_A_ROW` that could not be opened.
        """
        gone = isinstance(error, FileNotFoundError) or getattr(error, "errno", None)
        self._in_a_row = self._in_a_row + 1 if gone else 0
        if self._in_a_row >= GONE_IN_A_ROW:
            raise FolderGoneError(
                f"{GONE_IN_A_ROW} files in a row are gone, the last is {entry}: see that they are back"
            )


def files_below(folder: str | os.PathLike[str], endings: Sequence[str]) -> list[str]:
    """The files below a folder with one of the endings, in any case, in the order of `in_order`.

    Links to files and folders are followed. A folder that is reached twice counts once, under its own name rather than
    that of a link. A link back to a folder above is not followed. Hidden files and folders and `PASSED_BY` are passed
    by. One line each says which links led nowhere or twice to the same, and how many files have other endings.

    Args:
        folder: where to look, to any depth.
        endings: in lower case, such as `PICTURES`; () for all files.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: a folder cannot be read; the message names it.
    """
    walk = _Walk(os.fspath(folder), tuple(endings))
    walk.say()
    return in_order(walk.found)


def files_of(given: str | os.PathLike[str], endings: Sequence[str], what: str = "file") -> list[str]:
    """The files that a path or pattern stands for, never none.

    Args:
        given: a file of any ending; a folder, see `files_below`; or else a pattern with `*`, `?`, `[...]` and `**`, of which
            every file that matches is taken. `~` is the home folder.
        endings: of the files in a folder.
        what: the word for one of them in messages.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is a pipe or device, or a folder cannot be read.
    """
    path = os.path.expanduser(given)
    if is_file(path):
        return [path]
    if os.path.isdir(path):
        found = files_below(path, endings)
        if not found:
            raise NotFoundError(f"no {what} in {path}: it must contain files that end in one of {' '.join(endings)}")
        return found
    if os.path.exists(path):
        raise UserError(f"{path} is neither a file nor a folder: pipes and devices are not read")
    found = in_order(match for match in _matches(path) if is_file(match))
    if not found:
        raise NotFoundError(f"no file matches {os.fspath(given)!r}: give {what}s")
    return found


class _Walk:
    """Walks real folders first and links after them, so that a file counts under its own name."""

    def __init__(self, root: str, endings: tuple[str, ...]) -> None:
        self.root, self.endings = root, endings
        self.found: list[str] = []
        self.others: Counter[str] = Counter()
        self.lost: list[str] = []
        self.repeated: list[str] = []
        self.special: list[str] = []
        self._above = os.path.realpath(root)
        self._seen: dict[_Id, str] = {}
        self._inodes: list[tuple[int, array[int]]] = []  # by device, of the files found that are no links
        self._linked: dict[_Id, list[str]] = {}
        links = self._real_tree(root)
        while links:
            links = [link for name in in_order(links) for link in self._follow(name)]

    def _real_tree(self, top: str) -> list[str]:
        """Takes the files below a folder, and returns the links."""
        links: list[str] = []
        waiting = [top]
        while waiting:
            folder = waiting.pop()
            inner: list[str] = []
            try:
                status = os.stat(folder)
                here = status.st_dev, status.st_ino
                if here in self._seen:
                    self.repeated.append(f"{folder} is {self._seen[here]}")
                    continue
                self._seen[here] = folder
                inodes = array("Q")
                with os.scandir(folder) as entries:
                    for entry in entries:
                        self._take(entry, inner, links, inodes)
                if not os.access(folder, os.X_OK):
                    raise PermissionError(errno.EACCES, "its files may not be opened")
            except OSError as error:
                raise _unreadable(folder, error) from error
            self._inodes.append((status.st_dev, inodes))
            waiting += sorted(inner, reverse=True)
        return links

    def _take(self, entry: os.DirEntry[str], folders: list[str], links: list[str], inodes: array[int]) -> None:
        name = entry.name
        if name[0] == "." or name in PASSED_BY:
            return
        if entry.is_symlink():
            links.append(entry.path)
        elif entry.is_dir(follow_symlinks=False):
            folders.append(entry.path)
        elif not entry.is_file(follow_symlinks=False):
            self.special.append(entry.path)
        elif self._wanted(name):
            self.found.append(entry.path)
            inodes.append(entry.inode())

    def _wanted(self, name: str) -> bool:
        if not self.endings or name.lower().endswith(self.endings):
            return True
        self.others[os.path.splitext(name)[1].lower() or "none"] += 1
        return False

    def _follow(self, link: str) -> list[str]:
        """Takes what a link leads to, and returns the links found there."""
        try:
            status = os.stat(link)
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
                raise _unreadable(link, error) from error
            self.lost.append(link)
            return []
        if stat.S_ISDIR(status.st_mode):
            target, beside = os.path.realpath(link), os.path.realpath(os.path.dirname(link))
            if any(place == target or place.startswith(os.path.join(target, "")) for place in (self._above, beside)):
                self.repeated.append(f"{link} leads back to {target}")
                return []
            return self._real_tree(link)
        if not stat.S_ISREG(status.st_mode):
            self.special.append(link)
        elif self._wanted(link):
            self.found.append(link)
            self._linked.setdefault((status.st_dev, status.st_ino), []).append(link)
        return []

    def _twice(self) -> list[str]:
        """Links to files that are found under another name too."""
        twice = {link for links in self._linked.values() for link in links[1:]}
        if self._linked:
            for device, inodes in self._inodes:
                for inode in inodes:
                    twice.update(self._linked.get((device, inode), ()))
        return in_order(twice)

    def say(self) -> None:
        for what, names in (
            ("link(s) lead to nothing", self.lost),
            ("folder(s) have a second name, or are links to a folder above, and count once", self.repeated),
            ("pipe(s) or device(s) are not read", self.special),
            ("link(s) lead to files that have another name here, and count as well", self._twice()),
        ):
            if names:
                rank_zero_warn(f"{self.root}: {len(names)} {what}: {listed(in_order(names), NAMES_IN_WARNING)}")
        if self.others:
            kinds = ", ".join(f"{ending}: {count}" for ending, count in sorted(self.others.items()))
            rank_zero_info(
                f"{self.root}: {self.others.total()} file(s) with other endings ({kinds}) were not looked at"
            )


def _unreadable(path: str, error: OSError) -> UserError:
    if isinstance(error, FileNotFoundError):
        return NotFoundError(f"{path} does not exist")
    return UserError(f"{path} cannot be read ({error.strerror}): give yourself the right to it, or take it away")


def _matches(pattern: str) -> list[str]:
    """As `glob.glob`, save that a folder that cannot be read is an error, and that `**` enters no folder twice."""
    parts = pattern.split(os.sep)
    first = next((place for place, part in enumerate(parts) if glob.has_magic(part)), None)
    if first is None:
        return []
    start = "".join(part + os.sep for part in parts[:first])
    if "**" not in parts:
        places = [start]
        for part in parts[first:]:
            places = [path for place in places if os.path.isdir(place or os.curdir) for path in _named(place, part)]
        return places
    if not os.path.isdir(start or os.curdir):
        return []
    walk = _Walk(start or os.curdir, ())
    walk.say()
    inside = [os.path.relpath(path, start or os.curdir) for path in walk.found]
    return [start + path for path in inside if _fits(path.split(os.sep), parts[first:])]


def _named(folder: str, part: str) -> list[str]:
    if not glob.has_magic(part):
        return [os.path.join(folder, part)]
    try:
        with os.scandir(folder or os.curdir) as entries:
            names = [entry.name for entry in entries if entry.name[0] != "." or part[0] == "."]
    except OSError as error:
        raise _unreadable(folder, error) from error
    return [os.path.join(folder, name) for name in names if fnmatch.fnmatchcase(name, part)]


def _fits(names: Sequence[str], parts: Sequence[str]) -> bool:
    if not parts:
        return not names
    if parts[0] == "**":
        return any(_fits(names[place:], parts[1:] or ["*"]) for place in range(len(names)))
    return bool(names) and fnmatch.fnmatchcase(names[0], parts[0]) and _fits(names[1:], parts[1:])
