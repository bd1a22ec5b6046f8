"""The part that is a graph: order, branches, what is let go, and its static twin."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from qnas.nn.graph import Concat, Flatten, Graph, Product, SelectChannels, Sum, Unflatten, Wire


def test_values_go_where_the_wires_say():
    x = torch.randn(2, 4, 3, 3)
    graph = Graph(
        [
            Wire(nn.ReLU(), (0,)),
            Wire(Sum(), (0, 1)),
            Wire(Concat(), (1, 2, 0)),
            Wire(SelectChannels([5, 0]), (3,)),
            Wire(Product(), (4, 4)),
            Wire(Flatten(), (5,)),
        ],
        6,
    )
    both = torch.cat([x.relu(), x + x.relu(), x], 1)
    assert torch.equal(graph(x), (both[:, [5, 0]] ** 2).flatten(1))
    assert torch.equal(graph.extract()(x), graph(x))


def test_any_value_can_be_the_answer():
    x = torch.randn(2, 4)
    wires = [Wire(Unflatten(), (0,)), Wire(nn.ReLU(), (1,))]
    assert Graph(wires, 1)(x).shape == (2, 4, 1, 1)
    assert torch.equal(Graph(wires, 0)(x), x)


def test_a_value_is_let_go_after_its_last_use():
    alive = []

    class Watch(nn.Module):
        def forward(self, x):
            import weakref

            alive.append(weakref.ref(x))
            return x + 1

    class Look(nn.Module):
        def forward(self, x):
            seen.append([ref() is not None for ref in alive])
            return x

    seen: list[list[bool]] = []
    graph = Graph([Wire(Watch(), (0,)), Wire(Watch(), (1,)), Wire(Watch(), (2,)), Wire(Look(), (3,))], 4)
    graph(torch.zeros(1))
    assert seen[0][1:] == [False, False]


def test_wires_that_lead_nowhere_are_refused():
    with pytest.raises(ValueError, match="only 0 to 0 exist"):
        Graph([Wire(nn.ReLU(), (1,))], 1)
    with pytest.raises(ValueError, match="takes the values"):
        Graph([Wire(nn.ReLU(), ())], 1)
    with pytest.raises(ValueError, match="no value 2"):
        Graph([Wire(nn.ReLU(), (0,))], 2)


def test_weights_that_cannot_be_extracted_are_noticed():
    with pytest.raises(TypeError, match="Conv2d cannot be extracted"):
        Graph([Wire(nn.Conv2d(1, 1, 1), (0,))], 1).extract()


def test_flatten_keeps_the_order_whatever_the_memory_layout():
    x = torch.randn(2, 3, 4, 4)
    assert torch.equal(Flatten()(x.contiguous(memory_format=torch.channels_last)), x.flatten(1))
