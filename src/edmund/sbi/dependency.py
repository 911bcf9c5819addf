r"""Who must attend to whom, from a graph of direct dependences and from what is given and what is missing.

A conditional of a joint density depends on less than everything, but on what depends on the condition. In a Bayesian
network x_c <- parents(c), a common child that is observed makes its parents depend on each other ("explaining away"),
and so does an asked variable, for its noisy value is an observation of it. So for a sample's masks (Lauritzen &
Spiegelhalter 1988; Webb et al. 2018, arXiv 1712.00287; Gloeckler et al. 2024, arXiv 2404.09636, Section 3.2):

1. Missing variables without a descendant that is there are dropped: they say nothing.
2. Of what is left, each variable's parents are joined with it and with each other (the moral graph). An undirected
   graph, a Markov random field, is its own moral graph, and nothing is dropped.
3. Missing variables are eliminated: the neighbours of each are joined.

Tokens attend along the edges that are left, and information goes one edge a block. An asked variable depends on all
that a path of asked variables leads to, ends included (given ones block it: they are known exactly). What of that lies
farther away than the network has blocks is attended to directly, so that no dependence is cut off.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from edmund.errors import InputError


def check_graph(graph: Any, count: int) -> Tensor:
    """The graph as bool [count, count] without its diagonal; InputError where it is neither symmetric nor acyclic.

    graph [i, j]: i depends directly on j. Symmetric: a Markov random field; else j is a parent of i.
    """
    try:
        edges = torch.as_tensor(np.asarray(graph))
    except (TypeError, ValueError, RuntimeError):
        raise InputError(f"graph is a {type(graph).__name__}; it must be a matrix [{count}, {count}]") from None
    if edges.shape != (count, count):
        raise InputError(f"graph has shape {list(edges.shape)}; it must be [{count}, {count}], one row a column")
    if not bool(((edges == 0) | (edges == 1)).all()):
        raise InputError(
            f"graph holds {float(edges[(edges != 0) & (edges != 1)][0]):g}; it must hold 0 and 1 (or bool)"
        )
    edges = edges.bool() & ~torch.eye(count, dtype=torch.bool)
    if not torch.equal(edges, edges.mT) and bool(_closure(edges).diagonal().any()):
        on_cycle = int(_closure(edges).diagonal().nonzero()[0])
        raise InputError(
            f"graph has a directed cycle through variable {on_cycle}; it must be symmetric (undirected) or acyclic"
        )
    return edges


def attention(graph: Tensor, given: Tensor, missing: Tensor, blocks: int) -> Tensor:
    """Who may attend to whom in each sample, bool [B, V, V]; rows and columns of missing variables are empty.

    graph: of `check_graph`, bool [V, V]. given, missing [B, V] bool; what is neither is asked. blocks: of the network.
    """
    there = ~missing
    if torch.equal(graph, graph.mT):
        edges = graph.expand(len(given), -1, -1)
    else:
        edges, kept = _moral(graph, there)
        missing = missing & kept
    for variable in range(graph.shape[0]):
        neighbours = edges[:, variable] & missing[:, variable, None]
        edges = edges | (neighbours[:, :, None] & neighbours[:, None, :])
    edges = edges & there[:, :, None] & there[:, None, :]
    asked = there & ~given
    free = asked[:, :, None] & asked[:, None, :]
    component = _closure(edges & free) | (torch.eye(graph.shape[0], dtype=torch.bool, device=graph.device) & free)
    needed = component | _product(component, edges)
    near = edges
    for _ in range(min(blocks, graph.shape[0]) - 1):
        near = near | _product(near, edges)
    return edges | (needed & ~near)


def _moral(graph: Tensor, there: Tensor) -> tuple[Tensor, Tensor]:
    """The moral graphs [B, V, V] of the variables that are there and their ancestors, and which those are [B, V]."""
    count = graph.shape[0]
    eye = torch.eye(count, dtype=torch.bool, device=graph.device)
    descends = _closure(graph) | eye  # [i, j]: i is j or descends from it
    kept = _product(there[:, None], descends[None])[:, 0]
    families = graph | eye  # a child and its parents, a row each
    pairs = families[:, :, None] & families[:, None, :]
    edges = _product(kept[:, None], pairs.flatten(1)[None]).reshape(-1, count, count)
    return edges & ~eye, kept


def _product(a: Tensor, b: Tensor) -> Tensor:
    """The product of boolean matrices."""
    return (a.float() @ b.float()) > 0


def _closure(edges: Tensor) -> Tensor:
    """[i, j]: a path of one edge or more leads from i to j."""
    steps = 1
    while steps < edges.shape[-1]:
        edges = edges | _product(edges, edges)
        steps *= 2
    return edges
