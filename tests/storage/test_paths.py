"""A name from a file stays inside its directory."""

import pytest

from stablelm.config import InputError
from stablelm.storage import confined


@pytest.fixture
def folder(tmp_path):
    inside = tmp_path / "inside"
    (inside / "sub").mkdir(parents=True)
    (inside / "sub" / "file").write_text("x")
    (tmp_path / "secret").write_text("x")
    (tmp_path / "inside-too").mkdir()
    (inside / "to_file").symlink_to(tmp_path / "secret")
    (inside / "to_folder").symlink_to(tmp_path)
    (inside / "to_sub").symlink_to(inside / "sub")
    (inside / "loop").symlink_to(inside / "loop")
    (inside / "dangling").symlink_to("../nothing")
    return inside


@pytest.mark.parametrize(
    "name", ["sub/file", "sub/../sub/file", "new/deep/file", "to_sub/file", "..file", "a..b", "."]
)
def test_names_inside(folder, name):
    assert confined(folder, name) == folder / name


@pytest.mark.parametrize(
    "name",
    [
        "../secret",
        "sub/../../secret",
        "to_file",
        "to_folder/secret",
        "dangling",
        "/etc/passwd",
        "..",
        "../inside-too/x",
        "loop",
    ],
)
def test_names_that_lead_out(folder, name):
    with pytest.raises(InputError, match="leads outside this directory"):
        confined(folder, name)


def test_an_absolute_name_is_refused_even_when_it_is_inside(folder):
    with pytest.raises(InputError, match="leads outside"):
        confined(folder, str(folder / "sub" / "file"))


def test_a_root_that_is_a_link_is_fine(folder, tmp_path):
    (tmp_path / "alias").symlink_to(folder)
    assert confined(tmp_path / "alias", "sub/file").read_text() == "x"
    with pytest.raises(InputError, match="leads outside"):
        confined(tmp_path / "alias", "../secret")


def test_a_relative_root(folder, monkeypatch):
    monkeypatch.chdir(folder.parent)
    assert confined("inside", "sub/file").read_text() == "x"
    with pytest.raises(InputError, match="leads outside"):
        confined("inside", "../secret")
