"""What integration tests share."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest

from qnas.cli import main


@pytest.fixture
def qnas(monkeypatch, capsys):
    """Returns a function that gives a command in this process: its exit code and what it printed."""

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["qnas", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            main()
        shown = capsys.readouterr()
        assert "Traceback" not in shown.err
        return SimpleNamespace(code=int(stop.value.code or 0), out=shown.out, err=shown.err)

    return call
