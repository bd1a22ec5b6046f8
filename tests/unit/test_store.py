"""What a run directory refuses, from a stranger or from a machine that changed."""

from __future__ import annotations

import shutil
import sqlite3

import pytest

from qnas.config import load_config
from qnas.errors import ConfigError, StoreError
from qnas.plugins import load_registry
from qnas.run import Run
from qnas.store import RunDirectory

SMALL = {"space": {"options": {"depths": 1, "kernels": 3}}, "threads": 1}


@pytest.fixture
def created(tmp_path):
    with Run.create(tmp_path / "run", load_config(SMALL), load_registry()):
        pass
    return tmp_path / "run"


def test_a_search_name_from_a_file_cannot_leave_the_run(created):
    with RunDirectory(created) as store:
        name, state = store.open_search("evolution", {"seed": 0})
        assert (name, state) == ("01-evolution", None)
    with sqlite3.connect(created / "trials.sqlite") as database:
        database.execute("UPDATE searches SET search = '../../evil'")
    with RunDirectory(created) as store:
        (name,) = store.searches()
        with pytest.raises(StoreError, match="tampered"):
            store.search_directory(name)


def test_changed_images_are_noticed(created):
    (created / "data.json").write_text('{"digest": "0", "name": "digits"}')
    with Run.open(created, load_registry()) as run, pytest.raises(StoreError, match="not what the run"):
        run.space  # noqa: B018


def test_a_run_opens_without_the_compiler_it_was_made_with_but_does_not_train(created, monkeypatch):
    registry = load_registry()
    config = created / "config.toml"
    config.write_text(config.read_text().replace("compile = false", "compile = true"))
    monkeypatch.setattr(registry.load("quantizer", "lsq"), "can_compile", classmethod(lambda cls: False))
    with Run.open(created, registry) as run:
        assert run.config.compile
        with pytest.raises(ConfigError, match="Install a C compiler"):
            run.train()
    with pytest.raises(ConfigError, match="compile is true"):
        Run.create(created.parent / "other", load_config({**SMALL, "compile": True}), registry)
    assert not (created.parent / "other").exists()


def test_searches_are_in_the_order_in_which_they_were_begun(created):
    with RunDirectory(created) as store:
        names = [store.open_search("random", {"seed": seed})[0] for seed in range(11)]
        assert store.searches() == names
        assert store.open_search("random", {"seed": 3})[0] == names[3]


def test_leftovers_of_a_killed_process_are_removed(created):
    (created / "exports" / "k").mkdir(parents=True)
    (created / "exports" / "k" / "model.onnx.partial").write_bytes(b"half")
    with RunDirectory(created):
        assert not list(created.rglob("*.partial"))


def test_read_only_is_beside_whoever_holds_the_run(created):
    with RunDirectory(created) as store:
        name, _ = store.open_search("random", {"seed": 3})
        store.put_evaluation("c", "k", "test", {"accuracy": 0.5}, 8, b"x")
        with RunDirectory(created, read_only=True) as reader:
            assert reader.searches() == [name]
            assert reader.search_settings(name) == {"seed": 3}
            assert reader.search_settings("02-none") == {}
            assert reader.evaluations("k", "test") == [({"accuracy": 0.5}, 8, b"x")]
            assert reader.evaluations("k", "search") == []
            with pytest.raises(sqlite3.OperationalError, match="readonly"):
                reader.put_evaluation("d", "k", "test", {}, 8, b"x")
            reader.add_seconds("report", 1.0)
    assert not (created / "timings.json").exists()


def test_what_a_killed_process_left_half_written_is_not_mended_by_a_reader(created, tmp_path):
    with RunDirectory(created) as store:
        store.open_search("random", {})
        with store.transaction() as database:
            database.execute("PRAGMA cache_size = 1")  # so that changes reach the file before the end
            for i in range(200):
                store.put_evaluation(str(i), "k", "test", {}, 8, bytes(2000))
            shutil.copytree(created, tmp_path / "killed")
    assert (tmp_path / "killed" / "trials.sqlite-journal").stat().st_size
    with RunDirectory(tmp_path / "killed", read_only=True) as reader, pytest.raises(StoreError, match="qnas report"):
        reader.searches()
    with RunDirectory(tmp_path / "killed") as store:
        assert store.evaluations("0", "test") == []
    with RunDirectory(tmp_path / "killed", read_only=True) as reader:
        assert len(reader.searches()) == 1
