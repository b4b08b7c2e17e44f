"""What a folder holds: nothing lost, doubled or mislabelled in silence."""

from __future__ import annotations

import os
import socket
import unicodedata
from pathlib import Path

import pytest

from d2v_lightning.support.errors import NotFoundError, UserError
from datamodules.shared.files import PICTURES, RECORDINGS, files_below, files_of


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"")


def below(folder: Path) -> list[str]:
    return [os.path.relpath(path, folder) for path in files_below(folder, PICTURES)]


def test_hidden_and_left_behind_files_are_passed_by_and_others_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    touch(tmp_path, "a/1.JPG", "a/._1.JPG", ".trash/2.png", "a/.ipynb_checkpoints/1-checkpoint.jpg", "__MACOSX/a/1.png")
    touch(
        tmp_path, "a/@eaDir/1.jpg", "a/2.avif", "b/3.jfif", "b/4.m4a", "b/5.M4A", "b/README", "Thumbs.db", ".DS_Store"
    )
    with caplog.at_level("INFO"):
        assert below(tmp_path) == ["a/1.JPG", "a/2.avif", "b/3.jfif"]
    said = "3 file(s) with other endings (.m4a: 2, none: 1) were not looked at"
    assert [record.message for record in caplog.records] == [f"{tmp_path}: {said}"]


def test_order_is_by_folders_then_names_and_the_same_for_both_ways_to_write_an_accent(tmp_path: Path) -> None:
    decomposed = unicodedata.normalize("NFD", "é")
    touch(tmp_path, "a/2.png", "a-b/1.png", "a/10.png", "B.png", f"{decomposed}.png", "f.png", "ë.png", "z.png")
    assert below(tmp_path) == [
        "B.png", "a/10.png", "a/2.png", "a-b/1.png", "f.png", "z.png", f"{decomposed}.png", "ë.png",
    ]  # fmt: skip


def test_links_are_followed_and_what_has_two_names_counts_once(tmp_path: Path) -> None:
    root = tmp_path / "root"
    touch(tmp_path / "store", "x/1.png", "y/2.png")
    touch(root, "cat/1.png", "dog/1.png")
    (root / "a_cat").symlink_to("cat")  # sorts before the real one
    (root / "dog/up").symlink_to("..")
    (root / "dog/out").symlink_to(tmp_path)  # above the folder that was asked for
    (root / "x").symlink_to(tmp_path / "store/x")
    (root / "x_again").symlink_to("x")
    (tmp_path / "store/y/back").symlink_to(tmp_path / "store")  # above the link's target
    (root / "y").symlink_to(tmp_path / "store/y")
    with pytest.warns(UserWarning, match="5 folder") as caught:
        assert below(root) == ["cat/1.png", "dog/1.png", "x/1.png", "y/2.png"]
    (said,) = (str(warning.message) for warning in caught)
    assert "5 folder(s) have a second name" in said
    assert f"{root}/a_cat is {root}/cat" in said
    assert f"{root}/dog/up leads back to {root}" in said


def test_links_to_files_and_what_is_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(tmp_path, "a.png", "elsewhere/b.png")
    root = tmp_path / "root"
    touch(root, "1.png")
    (root / "2.png").symlink_to(tmp_path / "a.png")
    (root / "3.png").symlink_to("1.png")
    (root / "class").symlink_to(tmp_path / "unmounted")
    (root / "self.png").symlink_to("self.png")
    (root / "zero.png").symlink_to("/dev/zero")
    os.mkfifo(root / "pipe.png")
    with socket.socket(socket.AF_UNIX) as unix:
        monkeypatch.chdir(root)
        unix.bind("s.png")
        with pytest.warns(UserWarning, match="lead to") as caught:
            assert below(root) == ["1.png", "2.png", "3.png"]
    said = [str(warning.message).removeprefix(f"{root}: ").replace(f"{root}/", "") for warning in caught]
    assert sorted(said) == [
        "1 link(s) lead to files that have another name here, and count as well: 3.png",
        "2 link(s) lead to nothing: class; self.png",
        "3 pipe(s) or device(s) are not read: pipe.png; s.png; zero.png",
    ]
    for name in ("pipe.png", "zero.png"):
        with pytest.raises(UserError, match=f"{name} is neither a file nor a folder"):
            files_of(root / name, PICTURES)


@pytest.mark.parametrize("given", ["", "*/*.png", "**/*.png"])
def test_a_folder_without_permission_is_an_error_that_names_it(
    given: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    touch(tmp_path, "cat/1.png", "dog/1.png")
    scandir = os.scandir

    def refusing(path: str) -> object:
        if str(path).rstrip("/").endswith("dog"):
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)
    with pytest.raises(UserError, match=r"dog/? cannot be read \(Permission denied\)"):
        files_of(f"{tmp_path}/{given}" if given else tmp_path, PICTURES)


def test_a_name_comes_before_a_pattern_and_home_is_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    touch(tmp_path, "photos[1].jpg", "photos1.jpg", "in [2]/a.png", "in [2]/deep/er/b.png", "in [2]/.hidden/c.png")
    os.symlink("..", tmp_path / "in [2]/deep/up")

    def found(given: str) -> list[str]:
        return [os.path.relpath(path, tmp_path) for path in files_of(given, PICTURES)]

    assert found("~/photos[1].jpg") == ["photos[1].jpg"]
    assert found("~/photos[0-9].jpg") == ["photos1.jpg"]
    assert found(f"{tmp_path}/in*/*.png") == ["in [2]/a.png"]
    with pytest.warns(UserWarning, match="1 folder"):
        assert found("~/in [2]") == ["in [2]/a.png", "in [2]/deep/er/b.png"]
    with pytest.warns(UserWarning, match="1 folder"):
        assert found("~/**/*.png") == ["in [2]/a.png", "in [2]/deep/er/b.png"]
    monkeypatch.chdir(tmp_path)
    with pytest.warns(UserWarning, match="1 folder"):
        assert files_of("**/[ab].png", ()) == ["in [2]/a.png", "in [2]/deep/er/b.png"]
    assert files_of("photos?.jpg", ()) == ["photos1.jpg"]
    for nothing in ("none.png", "~/none/*", "none/**/*", "x" * 300, "a\0"):
        with pytest.raises(NotFoundError, match="no file matches"):
            files_of(nothing, PICTURES)


def test_names_that_are_no_utf8_are_paths(tmp_path: Path) -> None:
    path = os.path.join(os.fsencode(tmp_path), b"caf\xe9.wav")
    with open(path, "wb"):
        pass
    (found,) = files_below(tmp_path, RECORDINGS)
    assert os.fsencode(found) == path
    assert files_of(found, ()) == [found]
