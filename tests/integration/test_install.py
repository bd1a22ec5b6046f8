"""The wheel, installed into an environment of its own, works from another folder."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("qnas", "qnas_plugins", "qnas_search_spaces", "qnas_strategies")
SHOW_PATHS = f"""
import importlib
for name in {PACKAGES!r}:
    print(importlib.import_module(name).__file__)
"""

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("hatchling") is None or importlib.util.find_spec("pip") is None,
    reason="needs hatchling and pip in this environment",
)


def call(*command, cwd, **environment):
    done = subprocess.run(
        list(map(str, command)),
        cwd=cwd,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
        timeout=180,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    call(
        *(sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "--no-index"),
        *("--disable-pip-version-check", "-w", folder, ROOT),
        cwd=folder,
    )
    (found,) = folder.glob("qnas-*.whl")
    return found


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory) -> Path:
    """The scripts' folder of an environment with the wheel, which sees the dependencies of this one."""
    home = tmp_path_factory.mktemp("venv")
    venv.create(home, with_pip=False, symlinks=True)
    python = home / "bin" / "python"
    purelib = Path(call(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=home).strip())
    call(
        *(sys.executable, "-m", "pip", "--python", python, "install", "-q", "--no-deps", "--no-index"),
        *("--disable-pip-version-check", wheel),
        cwd=home,
    )
    # A plain path line: .pth files over there, such as that of an editable qnas, are not followed.
    (purelib / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return home / "bin"


def test_the_wheel_holds_every_package_and_its_data(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        (entry_points,) = [n for n in names if n.endswith(".dist-info/entry_points.txt")]
        text = archive.read(entry_points).decode()
    for group in ("[console_scripts]", "qnas = qnas.cli:main", "[qnas]", "plugins = qnas_plugins.registry"):
        assert group in text
    sources = {"qnas": "", "qnas_plugins": "", "qnas_search_spaces": "search_spaces", "qnas_strategies": "strategies"}
    for package, folder in sources.items():
        root = ROOT / folder
        wanted = {
            path.relative_to(root).as_posix()
            for path in (root / package).rglob("*")
            if path.is_file() and "__pycache__" not in path.parts and path.suffix not in (".pyc", ".so")
        }
        assert wanted <= names
    kinds = {Path(name).suffix for name in names}
    assert {".html", ".css", ".js", ".toml"} <= kinds
    assert not any(name.startswith(("tests/", "benchmarks/", "docs/")) for name in names)


def test_the_installed_packages_are_those_of_the_wheel(installed, tmp_path):
    paths = call(installed / "python", "-c", SHOW_PATHS, cwd=tmp_path).split()
    assert len(paths) == len(PACKAGES)
    assert all(Path(path).is_relative_to(installed.parent) for path in paths)


def test_the_script_answers_with_version_and_built_ins(installed, tmp_path):
    from qnas import __version__

    assert __version__ in call(installed / "qnas", "--version", cwd=tmp_path)
    value = json.loads(call(installed / "qnas", "plugins", "--json", cwd=tmp_path))
    here = json.loads(call(Path(sys.executable).with_name("qnas"), "plugins", "--json", cwd=tmp_path))
    assert value == here
    assert not value["set_aside"]
    assert {"mbv3", "lsq", "evolution", "random", "digits", "onnxruntime"} <= {c["name"] for c in value["components"]}


def test_a_run_works_from_another_folder(installed, tmp_path):
    call(
        *(installed / "qnas", "run", "--quiet", "--threads", "1"),
        *("--float-epochs", "0", "--epochs", "1", "--batch-size", "256", "--set", "train.num_subnets=2"),
        *("--space-option", "depths=1,2", "--space-option", "kernels=[3]", "--evaluations", "3"),
        cwd=tmp_path,
    )
    (run,) = (tmp_path / "runs").iterdir()
    assert (run / "report.html").is_file()
    assert list(run.glob("exports/*/model.onnx"))
