"""A run that is killed at the worst instants and resumed leaves the bytes of the run that was not killed.

Called as a program, this file is the ``qnas`` command with a fault: ``test_kill.py FAULT ... -- run --out RUN``. The
faults are put in from outside; the product knows nothing of them.
"""

from __future__ import annotations

import itertools
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from qnas.errors import StoreError
from qnas.files import PARTIAL
from qnas.store import RunDirectory

FLAGS = (
    *("--float-epochs", "1", "--epochs", "2", "--batch-size", "256", "--set", "train.num_subnets=3"),
    *("--space-option", "depths=1,2", "--space-option", "kernels=[3]", "--no-se", "--act", "relu"),
    *("--evaluations", "6", "--strategy-option", "population=4", "--seed", "3", "--threads", "1"),
)
BEGIN = ("run", "--out", "run", *FLAGS)
RESUME = ("run", "--resume", "run")
CHECKPOINT = "checkpoint.safetensors"
RECORDS = "records.jsonl"
STAGES = ("00-float", "01-quantized")
TIMEOUT = 120  # seconds; a run takes less than 10

# --- faults, in the process that is killed ---------------------------------------------------------------------------


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def due(nth: str) -> Callable[[], bool]:
    """Return what is true the nth time that it is asked."""
    calls = itertools.count(1)
    return lambda: next(calls) == int(nth)


def kill_with_half(name: str, nth: str) -> None:
    """Kill when half of a file's bytes are written."""
    from safetensors.torch import save

    from qnas import checkpoint

    write, last = Path.write_bytes, due(nth)

    def torn(path: Path, content: bytes) -> int:
        if path.name == name + PARTIAL and last():
            write(path, content[: len(content) // 2])
            kill()
        return write(path, content)

    Path.write_bytes = torn
    checkpoint.save_file = lambda tensors, path, metadata: path.write_bytes(save(tensors, metadata))


def kill_when_replaced(name: str, nth: str) -> None:
    """Kill when the new file has just taken the place of the old one."""
    replace, last = os.replace, due(nth)

    def put(source: Path, target: Path) -> None:
        replace(source, target)
        if Path(target).name == name and last():
            kill()

    os.replace = put


def kill_in_transaction(nth: str) -> None:
    """Kill before a trial's commit, with parts of the transaction already in the database's file."""
    put_trial, last = RunDirectory.put_trial, due(nth)

    def put(self: RunDirectory, *args: Any) -> None:
        put_trial(self, *args)
        if last():
            self.database.execute("PRAGMA cache_size = 1")  # SQLite no longer waits for the commit to write pages
            for i in range(100):
                self.put_evaluation(f"torn {i}", "", "search", {}, 0, bytes(2000))
            kill()

    RunDirectory.put_trial = put


def kill_after_trial(nth: str) -> None:
    """Kill between a trial's commit and whatever comes next."""
    from qnas.search import Search

    finish, last = Search._finish, due(nth)

    def finished(self: Search, *args: Any) -> None:
        finish(self, *args)
        if last():
            kill()

    Search._finish = finished


def kill_in_stage_change(nth: str) -> None:
    """Kill when a stage has been entered and nothing of it saved."""
    from qnas.train import Trainer

    enter, last = Trainer._enter_stage, due(nth)

    def entered(self: Trainer) -> None:
        enter(self)
        if last():
            kill()

    Trainer._enter_stage = entered


def kill_before_search() -> None:
    """Kill between training and search."""
    from qnas.search import Search

    Search.run = lambda self: kill()


def hold_in_search() -> None:
    """Stand still between the second trial's commit and the third trial, and say so."""
    from qnas.search import Search

    judge, last = Search._judge, due("3")

    def judged(self: Search, *args: Any) -> None:
        if last():
            print("held", flush=True)
            signal.pause()
        judge(self, *args)

    Search._judge = judged


def hear_interrupts() -> None:
    """Let SIGINT interrupt even where whoever started the tests ignores it."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


FAULTS: dict[str, Callable[..., None]] = {
    "half": kill_with_half,
    "replaced": kill_when_replaced,
    "transaction": kill_in_transaction,
    "trial": kill_after_trial,
    "stage": kill_in_stage_change,
    "search": kill_before_search,
    "hold": hold_in_search,
    "interrupt": hear_interrupts,
}


def main() -> None:
    """Put the fault in, then be the command."""
    from qnas import cli

    arguments = sys.argv[1:]
    end = arguments.index("--")
    FAULTS[arguments[0]](*arguments[1:end])
    sys.argv = ["qnas", *arguments[end + 1 :]]
    cli.main()


# --- processes -------------------------------------------------------------------------------------------------------


def start(folder: Path, arguments: Sequence[str], fault: Sequence[str] = ()) -> subprocess.Popen[str]:
    """Start the command in a process of its own, the run's folder being ``folder/run``."""
    program = [__file__, *fault, "--"] if fault else ["-c", "from qnas.cli import main; main()"]
    return subprocess.Popen(
        [sys.executable, *program, *arguments],
        cwd=folder,
        text=True,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def finish(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    """Return exit code and both outputs."""
    with process:
        try:
            output, errors = process.communicate(timeout=TIMEOUT)
        except subprocess.TimeoutExpired:
            process.kill()
            raise
        return process.returncode, output, errors


def qnas(folder: Path, arguments: Sequence[str] = RESUME) -> None:
    """Run the command to its end."""
    code, _, errors = finish(start(folder, arguments))
    assert code == 0, errors
    assert "Traceback" not in errors


def killed(folder: Path, arguments: Sequence[str], *fault: str) -> None:
    """Run the command until it kills itself."""
    code, _, errors = finish(start(folder, arguments, fault))
    assert code == -signal.SIGKILL, f"{' '.join(fault)}: exit code {code}\n{errors}"


def wait_for(found: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    """Wait until something is there, while the process lives."""
    end = time.monotonic() + TIMEOUT
    while not found():
        if process.poll() is not None or time.monotonic() > end:
            process.kill()
            pytest.fail(f"the process ended or stood still: {finish(process)}")
        time.sleep(0.002)


# --- what a run leaves -----------------------------------------------------------------------------------------------


def contents(run: Path) -> dict[str, bytes]:
    """Return all that a run made, by path, without the seconds that it took."""
    found = {str(p.relative_to(run)): p.read_bytes() for p in sorted(run.rglob("*")) if p.is_file()}
    del found["timings.json"]
    found["report.html"], count = re.subn(rb'<section id="timings".*?</section>', b"", found["report.html"], flags=re.S)
    assert count == 1
    with RunDirectory(run) as store:
        found["trials.sqlite"] = store.canonical_dump().encode()
    return found


@dataclass(frozen=True)
class Reference:
    """The run that nothing interrupted, the seconds until its configuration was there, and those that followed."""

    contents: dict[str, bytes]
    start: float
    rest: float

    def assert_equals(self, run: Path) -> None:
        found = contents(run)
        assert sorted(found) == sorted(self.contents)
        assert [name for name in found if found[name] != self.contents[name]] == []


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Reference:
    folder = tmp_path_factory.mktemp("reference")
    begin = time.monotonic()
    process = start(folder, BEGIN)
    wait_for((folder / "run" / "config.toml").is_file, process)
    there = time.monotonic()
    code, _, errors = finish(process)
    assert code == 0, errors
    return Reference(contents(folder / "run"), there - begin, time.monotonic() - there)


@pytest.fixture(scope="module")
def before_search(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was killed between training and search."""
    folder = tmp_path_factory.mktemp("before-search")
    killed(folder, BEGIN, "search")
    return folder / "run"


@pytest.fixture
def trained(before_search: Path, tmp_path: Path) -> Path:
    """A folder with a copy of that run."""
    shutil.copytree(before_search, tmp_path / "run")
    return tmp_path


def partials(folder: Path) -> list[str]:
    return [path.name for path in folder.rglob(f"*{PARTIAL}")]


# --- tests -----------------------------------------------------------------------------------------------------------


def test_the_reference_holds_every_kind_of_file(reference):
    names = {re.sub(r"exports/\w+", "exports/KEY", name) for name in reference.contents}
    assert names == {
        *("config.toml", "environment.json", "data.json", "lock", "trials.sqlite", "report.html", "front.png"),
        *(f"stages/{stage}/{name}" for stage in STAGES for name in (CHECKPOINT, RECORDS)),
        "searches/01-evolution/front.json",
        *(f"exports/KEY/{name}" for name in ("model.onnx", "packed.safetensors", "export.json", "verify.json")),
    }


def test_killed_before_there_is_a_configuration(tmp_path):
    run = tmp_path / "run"
    killed(tmp_path, BEGIN, "half", "config.toml", "1")
    assert partials(run) == ["config.toml" + PARTIAL]
    with pytest.raises(StoreError, match="no run directory"):
        RunDirectory(run)
    RunDirectory(run, create=True).close()  # the same command again
    assert partials(run) == []


def test_killed_in_checkpoint_writes_and_at_a_stage_change(reference, tmp_path):
    stages = tmp_path / "run" / "stages"
    killed(tmp_path, BEGIN, "half", CHECKPOINT, "1")  # no checkpoint is there yet
    assert {path.name for path in stages.rglob("*.*")} == {CHECKPOINT + PARTIAL, RECORDS}
    killed(tmp_path, RESUME, "stage", "2")
    assert {path.relative_to(stages) for path in stages.rglob("*.*")} == {
        Path("00-float", CHECKPOINT),
        Path("00-float", RECORDS),
    }
    killed(tmp_path, RESUME, "half", CHECKPOINT, "1")  # the first of the second stage
    assert partials(stages / "01-quantized") == [CHECKPOINT + PARTIAL]
    killed(tmp_path, RESUME, "replaced", CHECKPOINT, "1")  # within the second stage: the optimizer's state counts
    assert (stages / "01-quantized" / CHECKPOINT).stat().st_size > (stages / "00-float" / CHECKPOINT).stat().st_size
    qnas(tmp_path)
    reference.assert_equals(tmp_path / "run")


def test_killed_in_and_after_a_trials_transaction(reference, trained):
    run = trained / "run"
    killed(trained, RESUME, "transaction", "3")
    assert (run / "trials.sqlite-journal").stat().st_size > 0
    assert b"torn" in (run / "trials.sqlite").read_bytes()
    killed(trained, RESUME, "trial", "2")  # the fourth in all: the strategy is asked next
    with RunDirectory(run) as store:
        assert len(store.trials()) == 4
        assert "torn" not in store.canonical_dump()
    qnas(trained)
    reference.assert_equals(run)


def test_killed_in_the_writes_of_the_front_and_the_export(reference, trained):
    killed(trained, RESUME, "half", "front.json", "1")
    assert partials(trained) == ["front.json" + PARTIAL]
    killed(trained, RESUME, "half", "packed.safetensors", "1")
    assert partials(trained) == ["packed.safetensors" + PARTIAL]
    qnas(trained)
    reference.assert_equals(trained / "run")


def blow(process, seconds: float) -> tuple[int, str]:
    """Kill after a while; return the exit code and what was printed."""
    time.sleep(seconds)
    os.kill(process.pid, signal.SIGKILL)
    code, _, errors = finish(process)
    return code, errors


def test_killed_at_random(reference, tmp_path):
    rng = random.Random(0)
    share = rng.uniform(0, 0.5)
    for _ in range(5):  # the machine may be faster now than when the reference was timed
        process = start(tmp_path, BEGIN)
        wait_for((tmp_path / "run" / "config.toml").is_file, process)
        code, errors = blow(process, share * reference.rest)
        if code != 0:
            break
        shutil.rmtree(tmp_path / "run")
        share /= 2
    assert code == -signal.SIGKILL, errors
    process = start(tmp_path, RESUME)
    code, errors = blow(process, reference.start + rng.uniform(0, 0.5) * (1 - share) * reference.rest)
    assert code in (-signal.SIGKILL, 0), errors  # a fast machine was done before the second blow
    qnas(tmp_path)
    reference.assert_equals(tmp_path / "run")


def test_interrupted_from_the_keyboard(reference, tmp_path):
    process = start(tmp_path, BEGIN, ["interrupt"])
    wait_for((tmp_path / "run" / "stages" / "01-quantized" / CHECKPOINT).is_file, process)
    os.kill(process.pid, signal.SIGINT)
    code, output, errors = finish(process)
    assert (code, output) == (130, "")
    assert "--resume" in errors.splitlines()[-1]
    assert "Traceback" not in errors
    assert partials(tmp_path) == []
    qnas(tmp_path)
    reference.assert_equals(tmp_path / "run")


def test_a_run_in_use_is_refused_and_a_killed_one_is_free(trained):
    holder = start(trained, RESUME, ["hold"])
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        code, output, errors = finish(start(trained, RESUME))
        assert (code, output) == (2, "")
        assert errors == "Error: run is in use by another qnas process. Wait for it or stop it, then try again.\n"
        assert holder.poll() is None
    finally:
        holder.kill()
        finish(holder)

    code, output, errors = finish(start(trained, (*RESUME, "--lr", "0.5")))
    assert (code, output) == (2, "")
    assert errors.startswith("Error: --resume cannot change train.lr: the run in run has 0.006, given is 0.5.")
    assert errors.count("\n") == 1


if __name__ == "__main__":
    main()
