"""What a user names as PACKAGE.MODULE:FACTORY is found, from installed packages first, never from a run directory."""

from __future__ import annotations

import os
import sys

import pytest

from qnas.errors import ConfigError
from qnas.factories import current_directory_importable, find_factory, is_users_code, told


@pytest.fixture
def here(tmp_path, monkeypatch):
    """Returns what writes a module into an otherwise empty current directory; imports are forgotten afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p not in ("", os.getcwd())])
    before = set(sys.modules)

    def write(name, text):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
        return tmp_path

    yield write
    for name in set(sys.modules) - before:
        del sys.modules[name]


def test_a_file_of_the_current_directory_is_importable_while_it_is_needed(here):
    folder = here("factory_a.py", "class Nets:\n    @staticmethod\n    def make():\n        return 7\n")
    assert find_factory("factory_a:Nets.make")() == 7
    assert str(folder) not in sys.path
    with current_directory_importable():
        assert sys.path[-1] == str(folder)


def test_packages_of_the_current_directory_too(here):
    here("factory_pkg/__init__.py", "")
    here("factory_pkg/nets.py", "def make():\n    return 3\n")
    assert find_factory("factory_pkg.nets:make")() == 3


def test_a_file_cannot_pass_for_an_installed_module(here):
    here("colorsys.py", "raise RuntimeError('run')\n")
    sys.modules.pop("colorsys", None)
    assert find_factory("colorsys:rgb_to_hsv")(0, 0, 0) == (0.0, 0.0, 0)


def test_nothing_is_imported_out_of_a_run_directory(here):
    folder = here("factory_b.py", "open('ran', 'w').close()\ndef make():\n    return 1\n")
    with pytest.raises(
        ConfigError, match=r"wants to import 'factory_b' from .*factory_b\.py, inside the run directory"
    ):
        find_factory("factory_b:make", run_directory=folder)
    here("factory_c/inner.py", "open('ran', 'w').close()\n")
    with pytest.raises(ConfigError, match="inside the run directory"):
        find_factory("factory_c.inner:make", run_directory=folder / "factory_c")
    assert not (folder / "ran").exists()
    assert find_factory("factory_b:make", run_directory=folder / "runs" / "one")() == 1


@pytest.mark.parametrize(
    "source", ["", "mynet", ":make", "mynet:", "my-net:make", "../mynet:make", "a..b:make", "a:b:c"]
)
def test_other_forms_are_refused(source):
    with pytest.raises(ConfigError, match="does not name a network"):
        find_factory(source)


def test_a_missing_module_is_told_from_a_module_that_misses_one(here):
    with pytest.raises(ConfigError, match=r"There is no module .factory_none., .* neither installed nor in"):
        find_factory("factory_none:make")
    here("factory_d.py", "\nimport factory_missing\n")
    with pytest.raises(
        ConfigError, match=r"'factory_d' .* cannot be imported: ModuleNotFoundError: .*_d\.py, line 2\)"
    ):
        find_factory("factory_d:make")
    here("factory_e.py", "raise SystemExit(3)\n")
    with pytest.raises(ConfigError, match=r"cannot be imported: SystemExit: 3 \(.*factory_e\.py, line 1\)"):
        find_factory("factory_e:make")


def test_an_error_is_told_in_one_line_with_the_users_place(here):
    here("factory_f.py", "import json\ndef make():\n    return json.loads('{')\n")
    try:
        find_factory("factory_f:make")()
    except ValueError as error:
        text = told(error)
    assert text.startswith("JSONDecodeError: Expecting property name")
    assert text.endswith("factory_f.py, line 3)")
    assert told(ValueError()) == "ValueError"


def test_whose_code_a_file_is():
    import torch

    assert is_users_code("/home/me/net.py")
    assert not is_users_code("/home/me/net.py", own="/home/me")
    assert not is_users_code(torch.nn.__file__)
    assert not is_users_code(os.__file__)
    assert not is_users_code("<string>")
