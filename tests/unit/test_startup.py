"""What answers at once must import nothing heavy."""

from __future__ import annotations

import resource
import subprocess
import sys
from pathlib import Path

import pytest

from qnas.cli import COMMANDS

HEAVY = (
    *("torch", "numpy", "pydantic", "sklearn", "onnx", "onnxruntime", "nni", "matplotlib", "plotly", "scipy"),
    *("PIL", "pyarrow", "datasets", "pymoo", "optuna", "lightning_fabric", "tensorboard"),
)
QNAS = Path(sys.executable).with_name("qnas")
DRIVER = """
import contextlib, io, sys
sys.argv = ["qnas", *{arguments!r}]
with contextlib.redirect_stdout(io.StringIO()) as shown:
    try:
        from qnas.cli import main
        main()
    except SystemExit as error:
        assert not error.code, error.code
assert len(shown.getvalue()) > 5
print(*(name for name in {heavy!r} if name in sys.modules))
"""


def python(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


@pytest.mark.parametrize(
    "arguments", [["--help"], ["--version"], ["plugins"], ["plugins", "--json"], ["plugins", "--kind", "quantizer"]]
)
def test_quick_answers_import_nothing_heavy(arguments):
    assert python(DRIVER.format(arguments=arguments, heavy=HEAVY)) == ""


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_a_command_has_examples_and_imports_nothing_heavy(command):
    assert (
        python(DRIVER.format(arguments=[command, "--help"], heavy=[name for name in HEAVY if name != "pydantic"])) == ""
    )
    shown = subprocess.run([QNAS, command, "--help"], capture_output=True, text=True, check=True).stdout
    assert "Examples:" in shown
    assert f"  qnas {command}" in shown.split("Examples:")[1]
    assert max(map(len, shown.splitlines())) <= 110


def test_the_package_itself_imports_nothing_heavy():
    assert python(f"import qnas, sys; print(*(name for name in {HEAVY!r} if name in sys.modules))") == ""


def test_help_lists_every_command_with_examples():
    shown = subprocess.run([QNAS, "--help"], capture_output=True, text=True, check=True).stdout
    assert "Examples:" in shown
    for command in COMMANDS:
        assert f"\n  {command} " in shown


@pytest.mark.parametrize("arguments", [["--help"], ["plugins"]])
def test_quick_answers_are_quick(arguments):
    def seconds():  # of the processor, since other work on the machine says nothing of the command
        def spent():
            used = resource.getrusage(resource.RUSAGE_CHILDREN)
            return used.ru_utime + used.ru_stime

        start = spent()
        subprocess.run([QNAS, *arguments], capture_output=True, check=True)
        return spent() - start

    assert min(seconds() for _ in range(5)) < 0.4
