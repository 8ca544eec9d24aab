from __future__ import annotations

from pathlib import Path

import pytest

from residuum.audit.settings import Settings, find_settings
from residuum.errors import InputError


def write(folder: Path, text: str) -> Path:
    (folder / "pyproject.toml").write_text(text)
    return folder / "pyproject.toml"


def test_without_a_table_there_are_defaults(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path, "[project]\nname = 'theirs'\n")
    assert find_settings() == Settings()


def test_the_nearest_file_upwards_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, '[tool.residuum]\nselect = ["RS2"]\nfail-on = "warning"\nbaseline = "known.json"\n')
    (tmp_path / "a" / "b").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "a" / "b")
    assert find_settings() == Settings(("RS2",), (), "warning", tmp_path / "known.json")
    write(tmp_path / "a", '[tool.residuum]\nignore = ["RS3", "RS101"]\n')
    assert find_settings() == Settings(ignore=("RS3", "RS101"))


def test_a_target_has_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path, '[tool.residuum]\nselect = ["RS2"]\n[tool.residuum.target."a:b"]\nfail-on = "never"\nselect = []\n')
    assert find_settings("a:b") == Settings(fail_on="never")
    assert find_settings("a:c") == Settings(select=("RS2",))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "[tool.residuum]\nselct = ['RS2']",
            "tool.residuum.selct is unknown: choose select, ignore, fail-on, baseline",
        ),
        ("[tool.residuum]\nfail_on = 'error'", "tool.residuum.fail_on is unknown"),
        ("[tool.residuum]\nselect = 'RS2'", "tool.residuum.select is 'RS2': give a list of codes"),
        ("[tool.residuum]\nignore = [2]", "tool.residuum.ignore is [2]: give a list of codes"),
        (
            "[tool.residuum]\nfail-on = 'fatal'",
            "tool.residuum.fail-on is 'fatal': give one of info, warning, error, never",
        ),
        ("[tool.residuum]\nbaseline = true", "tool.residuum.baseline is True: give the path of a file"),
        ("[tool.residuum]\nbaseline = ''", "tool.residuum.baseline is '': give the path of a file"),
        ("[tool.residuum]\ntarget = 3", "tool.residuum.target is 3: give a table"),
        ("[tool.residuum.target.'a:b']\nformat = 'md'", "tool.residuum.target.'a:b'.format is unknown"),
        ("[tool]\nresiduum = 3", "tool.residuum is 3: give a table"),
        ("[tool.residuum", "cannot be read: "),
        ("tool = 3", "tool is 3: give a table"),
    ],
)
def test_mistakes_name_the_key_and_the_file(
    text: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = write(tmp_path, text)
    with pytest.raises(InputError) as caught:
        find_settings()
    assert message in str(caught.value)
    assert str(path) in str(caught.value)
