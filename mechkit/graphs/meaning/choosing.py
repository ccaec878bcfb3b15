"""Nodes of a graph by what a user calls them: a node, its id, or its site."""

from collections.abc import Sequence

from mechkit.graphs.nodes import Node


def chosen_nodes(graph, nodes: "Sequence[Node | str]") -> list[Node]:
    """The kept nodes that these name, each once. Raises ValueError for one that is not there or was pruned."""
    sources = graph.weighted.sources
    kept = [*(sources[i] for i in graph.kept_sources), *graph.roots]
    by_name = {str(node.site): node for node in kept} | {node.id: node for node in kept}
    found: dict[str, Node] = {}
    for one in nodes:
        name = one.id if isinstance(one, Node) else one
        if name not in by_name:
            raise ValueError(_absent(graph, name))
        found[by_name[name].id] = by_name[name]
    return list(found.values())


def _absent(graph, name: str) -> str:
    if any(name in (node.id, str(node.site)) for node in graph.weighted.sources):
        return f"node {name!r} was pruned away; trace with a higher node_threshold to keep it"
    shown = ", ".join(node.id for node in (graph.weighted.sources[i] for i in graph.kept_sources[:5]))
    return f"no node {name!r} in this graph; nodes are called by id ({shown}, ...) or site"


def group_of(graph, name: str, nodes: "Sequence[Node | str] | Node | str") -> list[Node]:
    """The nodes of a supernode to be. Raises ValueError where they make none."""
    members = chosen_nodes(graph, [nodes] if isinstance(nodes, Node | str) else list(nodes))
    if not name.strip() or not members:
        raise ValueError(f"supernode {name!r} with {len(members)} nodes; it needs a name and at least one node")
    kinds = sorted({node.kind for node in members})
    if len(kinds) > 1 or members[0].root is not None:
        raise ValueError(
            f"supernode {name!r} of kinds {', '.join(kinds)}; put features with features, errors with errors, tokens "
            "with tokens, and leave what the graph explains alone"
        )
    return members
