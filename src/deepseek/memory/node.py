"""A node of the autograd graph, whose saved attributes are its operation's own."""

from typing import Any

Node = Any  # torch.autograd.graph.Node
