from __future__ import annotations

import pytest

from narrowtune.core.errors import UsageError
from narrowtune.core.run_folder import check_output


def test_a_folder_that_is_not_there_yet_is_not_made(tmp_path):
    check_output(tmp_path / "a/b", ["x"], overwrite=False)
    assert list(tmp_path.iterdir()) == []


def test_a_file_in_the_way(tmp_path):
    (tmp_path / "a").touch()
    for place in (tmp_path / "a", tmp_path / "a/b"):
        with pytest.raises(UsageError, match="Not a directory"):
            check_output(place, ["x"], overwrite=True)


def test_files_from_before_are_named_unless_they_may_be_replaced(tmp_path):
    (tmp_path / "x").touch()
    (tmp_path / "y").symlink_to(tmp_path / "nowhere")
    with pytest.raises(UsageError, match="x, y from before"):
        check_output(tmp_path, ["x", "y", "z"], overwrite=False)
    check_output(tmp_path, ["z"], overwrite=False)
    check_output(tmp_path, ["x", "y"], overwrite=True)
