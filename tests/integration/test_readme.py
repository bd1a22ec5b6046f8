"""The README's two commands in a clean copy and a clean environment, as a newcomer types them."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def copy(tmp_path):
    """The files that git tracks, in a folder of their own."""
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("needs a git checkout to know which files belong to the project")
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True, text=True).stdout
    for name in filter(None, listed.split("\0")):
        target = tmp_path / "qnas" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, target)
    return tmp_path / "qnas"


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_make_run_does_the_main_job(copy):
    environment = {k: v for k, v in os.environ.items() if k not in ("VIRTUAL_ENV", "PYTHONPATH", "MAKEFLAGS")}
    done = subprocess.run(["make", "run"], cwd=copy, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "Verification passed" in done.stdout
    run = copy / "runs" / "001-mbv3-lsq-evolution"
    for name in ("report.html", "front.png", "config.toml"):
        assert (run / name).is_file()
    assert list(run.glob("exports/*/model.onnx"))


def test_the_readme_names_commands_that_exist():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    targets = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in ("run", "test"):
        assert f"$ make {target}" in text
        assert f"\n{target}: $(STAMP)" in targets
