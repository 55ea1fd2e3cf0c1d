"""Atomic writes: the new content or the old, and no temporary file after a failure."""

import pytest

from merino_edge.storage.atomic import write_text
from merino_runtime.errors import MerinoError


def test_a_text_takes_the_place_of_the_old_one(tmp_path):
    path = tmp_path / "new" / "file.json"
    for text in ("old", "é\n"):
        write_text(path, text)
        assert path.read_text(encoding="utf-8") == text
    assert list(path.parent.iterdir()) == [path]


def test_a_failed_rename_leaves_no_temporary_file(tmp_path):
    target = tmp_path / "taken"
    target.mkdir()
    with pytest.raises(MerinoError, match="cannot write .*taken"):
        write_text(target, "text")
    assert list(tmp_path.iterdir()) == [target] and not list(target.iterdir())


def test_a_failed_write_leaves_the_old_text_and_no_temporary_file(tmp_path):
    """A lone surrogate has no UTF-8 form, so encoding fails when the temporary file is already there."""
    path = tmp_path / "file.json"
    write_text(path, "old")
    with pytest.raises(UnicodeEncodeError):
        write_text(path, "\ud800")
    assert list(tmp_path.iterdir()) == [path] and path.read_text() == "old"
