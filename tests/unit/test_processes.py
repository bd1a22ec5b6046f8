"""Who works on what: several processes played by threads, with a broadcast and a gathering that they share."""

from __future__ import annotations

import copy
import pickle
import threading

import pytest
import torch

from qnas.errors import ConfigError, ProcessError, StoreError
from qnas.processes import FabricProcesses, Processes, connect, is_follower, resolve_device


class Group:
    """The two collectives that sharing and mapping rest on, between threads; values are pickled on the way."""

    def __init__(self, size):
        self.size = size
        self.barrier = threading.Barrier(size, timeout=10)
        self.slots = [None] * size
        self.rank = threading.local()

    def meet(self, value):
        self.slots[self.rank.value] = pickle.dumps(value)
        self.barrier.wait()
        found = [pickle.loads(slot) for slot in self.slots]
        self.barrier.wait()
        return found

    def broadcast_object_list(self, box, src, device):
        box[0] = self.meet(box[0])[src]

    def all_gather_object(self, gathered, value):
        gathered[:] = self.meet(value)

    def process(self, rank):
        """Return what this thread's process would hold, without starting one."""
        self.rank.value = rank
        found = FabricProcesses.__new__(FabricProcesses)
        Processes.__init__(found)
        found.rank, found.size = rank, self.size
        return found

    def run(self, work):
        """Let every process do ``work(processes)``; return the answers, errors among them."""
        answers = [None] * self.size

        def one(rank):
            try:
                answers[rank] = work(self.process(rank))
            except Exception as error:
                answers[rank] = error

        threads = [threading.Thread(target=one, args=(rank,)) for rank in range(self.size)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20)
        assert not any(thread.is_alive() for thread in threads), "a process waits for ever"
        return answers


@pytest.fixture(params=[2, 3])
def group(request, monkeypatch):
    group = Group(request.param)
    monkeypatch.setattr(torch.distributed, "broadcast_object_list", group.broadcast_object_list)
    monkeypatch.setattr(torch.distributed, "all_gather_object", group.all_gather_object)
    return group


def test_all_hear_the_leader(group):
    assert group.run(lambda p: p.share({"from": p.rank})) == [{"from": 0}] * group.size


@pytest.mark.parametrize("n", range(8))
def test_results_come_in_the_order_of_the_items_and_the_work_is_shared(group, n):
    done = [[] for _ in range(group.size)]

    def work(processes):
        def square(item):
            done[processes.rank].append(item)
            return item**2

        if not processes.leader:
            return processes.serve(square)
        with processes.leading():
            return processes.map(square, list(range(n)))

    answers = group.run(work)
    assert answers[0] == [i**2 for i in range(n)]
    assert answers[1:] == [None] * (group.size - 1)
    assert done == [list(range(n))[rank :: group.size] for rank in range(group.size)]


def test_several_maps_of_several_blocks(group):
    def work(processes):
        if not processes.leader:
            processes.serve(lambda item: item + 1)
            return processes.serve(lambda item: item * 10)
        with processes.leading():
            first = [processes.map(lambda item: item + 1, [1, 2]), processes.map(lambda item: item + 1, [5])]
        with processes.leading():
            return first, processes.map(lambda item: item * 10, [1, 2, 3, 4])

    assert group.run(work)[0] == ([[2, 3], [6]], [10, 20, 30, 40])


@pytest.mark.parametrize("bad", [0, 1])
def test_a_mistake_in_any_process_is_the_leaders_error_and_ends_all(group, bad):
    def judge(item):
        if item == bad:
            raise StoreError(f"item {item} is broken")
        return item

    def work(processes):
        if not processes.leader:
            return processes.serve(judge)
        with processes.leading():
            return processes.map(judge, [0, 1, 2, 3])

    first, *others = group.run(work)
    assert isinstance(first, StoreError)
    assert str(first) == f"item {bad} is broken"
    assert others == [None] * (group.size - 1)


def test_an_error_of_the_leader_between_maps_ends_the_followers(group):
    def work(processes):
        if not processes.leader:
            return processes.serve(lambda item: item)
        with processes.leading():
            raise ValueError("of the strategy")

    first, *others = group.run(work)
    assert isinstance(first, ValueError)
    assert others == [None] * (group.size - 1)


def test_a_lost_process_is_told_in_one_sentence(group, monkeypatch):
    def broken(*args, **kwargs):
        raise RuntimeError("Connection closed by peer [127.0.0.1]:1. And more. And more.")

    monkeypatch.setattr(torch.distributed, "broadcast_object_list", broken)
    for error in group.run(lambda p: p.share(1)):
        assert isinstance(error, ProcessError)
        assert "Another process of this run stopped (Connection closed by peer [127.0.0.1]:1)." in str(error)
        assert error.exit_code == 1


def test_each_process_can_be_by_itself(group):
    def work(processes):
        own = processes.alone()
        return own.rank, own.size, own.leader, own.share(processes.rank), own.map(lambda i: i, [processes.rank])

    assert group.run(work) == [(0, 1, True, rank, [rank]) for rank in range(group.size)]


def test_gradients_are_averaged_and_missing_ones_stay_missing(group, monkeypatch):
    def all_reduce(flat, op=None):
        flat.copy_(sum(group.meet(flat.clone())))

    monkeypatch.setattr(torch.distributed, "all_reduce", all_reduce)

    def work(processes):
        used, unused, strided = (torch.nn.Parameter(torch.zeros(2, 3, 2, 2)) for _ in range(3))
        used.grad = torch.full_like(used, float(processes.rank))
        layout = torch.arange(24.0).reshape(2, 3, 2, 2) * (processes.rank + 1)
        strided.grad = layout.contiguous(memory_format=torch.channels_last)
        processes.average_gradients([used, unused, strided])
        return used.grad, unused.grad, strided.grad

    mean = sum(range(group.size)) / group.size
    for used, unused, strided in group.run(work):
        assert unused is None
        torch.testing.assert_close(used, torch.full((2, 3, 2, 2), mean))
        torch.testing.assert_close(strided, torch.arange(24.0).reshape(2, 3, 2, 2) * (mean + 1), check_stride=False)


def test_a_process_alone_does_all_itself():
    processes = Processes()
    assert (processes.leader, processes.size, processes.share("x")) == (True, 1, "x")
    with processes.leading():
        assert processes.map(str, [1, 2]) == ["1", "2"]
    assert processes.serve(str) is None
    assert not torch.is_autocast_enabled("cpu")
    with copy.copy(processes).autocast():
        assert not torch.is_autocast_enabled("cpu")
    with Processes(precision="bf16-mixed").autocast():
        assert torch.is_autocast_enabled("cpu")


@pytest.mark.parametrize(
    ("variables", "follows"),
    [
        ({}, False),
        ({"LOCAL_RANK": "0"}, False),
        ({"LOCAL_RANK": "1"}, True),
        ({"NODE_RANK": "1", "LOCAL_RANK": "0"}, True),
        ({"SLURM_PROCID": "2"}, True),
        ({"TORCHELASTIC_RUN_ID": "x", "RANK": "0", "LOCAL_RANK": "0"}, False),
        ({"TORCHELASTIC_RUN_ID": "x", "RANK": "4", "LOCAL_RANK": "0"}, True),
    ],
)
def test_a_follower_knows_itself_by_its_environment(monkeypatch, variables, follows):
    for name in ("TORCHELASTIC_RUN_ID", "RANK", "LOCAL_RANK", "NODE_RANK", "SLURM_PROCID"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert is_follower() == follows


def test_devices_are_resolved(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert (resolve_device("auto"), resolve_device("cpu")) == ("cpu", "cpu")
    assert resolve_device("cuda", missing="cpu") == "cpu"
    with pytest.raises(ConfigError, match=r"no CUDA device on this machine\. Use --device cpu"):
        resolve_device("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert (resolve_device("auto"), resolve_device("cpu"), resolve_device("cuda")) == ("cuda", "cpu", "cuda")


def test_one_process_needs_no_group_and_none_is_no_number(monkeypatch):
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    assert type(connect(device="cpu", devices=1, num_nodes=1, precision="float32")) is Processes
    for devices, nodes in ((0, 1), (1, 0)):
        with pytest.raises(ConfigError, match=f"at least 1; given: {devices} and {nodes}"):
            connect(device="cpu", devices=devices, num_nodes=nodes, precision="float32")
