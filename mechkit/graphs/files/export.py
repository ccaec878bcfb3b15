"""What a graph looks like outside: one document, which its file, page and picture show.

The document is JSON in Neuronpedia's graph schema. It holds what pruning kept; what the schema has no place for stands
under the key `mechkit`: how the graph was made, scores, and of each node its class, share of the answer, plot and
checks, of each edge the share of the answer along it and the heads that carry it. Biases are no nodes: each target says
what they add to its pre-activation.
"""

from collections.abc import Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from itertools import accumulate

import numpy as np

from mechkit.graphs.engine.headed import heads_are_affordable
from mechkit.graphs.graph import AttributionGraph
from mechkit.graphs.meaning.notes import label_of
from mechkit.graphs.meaning.operands import OperandGrid
from mechkit.graphs.nodes import Node

FEATURE_TYPES = {
    "feature": "cross layer transcoder",
    "error": "mlp reconstruction error",
    "token": "embedding",
    "position": "embedding",
    "bos": "embedding",
    "logit": "logit",
    "target": "logit",
}
"""Neuronpedia's names of our kinds of nodes."""

PINNED = 0.25
"""Share of the strongest pathway from which on a pathway's nodes are pinned."""


def graph_document(graph: AttributionGraph) -> dict:
    """The kept part of the graph as JSON-able data, valid against Neuronpedia's graph schema."""
    sources = [graph.weighted.sources[i] for i in graph.kept_sources]
    nodes, (links, edges) = [*sources, *graph.roots], _links(graph)
    together, pathways = _together(graph, sources), _pathways(graph)
    view = {"pinnedIds": _pinned(pathways), "supernodes": _supernode_lists(graph), "linkType": "both", "clickedId": ""}
    return {
        "metadata": _metadata(graph),
        "qParams": view,
        "nodes": [_json_node(graph, node, together) for node in nodes],
        "links": links,
        "mechkit": {
            "made": dict(graph.meta),
            "scores": {name: _finite(value) for name, value in graph.scores.items()},
            "exact_error": None if graph.check is None else graph.check.exact_error,
            "n_layers": graph.attribution.frozen.model.cfg.n_layers,
            "operands": _operands(graph),
            "pathways": pathways,
            "tables": _tables(graph),
            "supernodes": {check.name: _effects(check) for check in graph.supernode_checks},
            "nodes": _about(graph, nodes),
            "edges": edges,
        },
    }


def _metadata(graph: AttributionGraph) -> dict:
    made = vars(graph).setdefault("_first_shown", datetime.now(UTC))  # saved twice, a graph is the same file
    return {
        "slug": f"{graph.meta['model']}-{'-'.join(str(node.index) for node in graph.nodes if node.kind == 'token')}",
        "scan": graph.meta["model"] or "model",
        "prompt_tokens": list(graph.meta["tokens"]),
        "prompt": graph.meta["prompt"],
        "node_threshold": graph.meta["node_threshold"],
        "pruning_settings": {name: graph.meta[name] for name in ("node_threshold", "edge_threshold")},
        "info": {
            "generator": {"name": "mechkit", "version": graph.meta["mechkit"]},
            "create_time_ms": int(made.timestamp() * 1000),
        },
    }


def _supernode_lists(graph: AttributionGraph) -> list[list[str]]:
    return [[name, *(node.id for node in nodes)] for name, nodes in graph.supernodes.items()]


def _json_node(graph: AttributionGraph, node: Node, together: Mapping[str, float]) -> dict:
    top = node.kind in ("logit", "target")
    layer = {"token": "E", "position": "E"}.get(node.kind, str(node.layer + top))
    feature = {"feature": _cantor(node), "error": -1}.get(node.kind, node.index)
    return {
        "node_id": node.id,
        "feature": feature,
        "layer": layer,
        "ctx_idx": node.pos or 0,
        "feature_type": FEATURE_TYPES[node.kind],
        "jsNodeId": f"{node.id}-0",
        "clerp": node_label(graph, node),
        "influence": together.get(node.id),
        "activation": node.value if node.kind == "feature" else None,
        "token_prob": graph.probabilities.get(node.id),
        "is_target_logit": top,
        "reverse_ctx_idx": 0,
    }


def _together(graph: AttributionGraph, sources: list[Node]) -> dict[str, float]:
    """What Neuronpedia calls the influence of a node: the share that it and all stronger nodes hold together."""
    strongest = sorted(sources, key=lambda node: -_influence(graph, node))
    total = float(graph.weighted.influence.sum()) or 1.0
    held = accumulate(_influence(graph, node) for node in strongest)
    return {node.id: min(1.0, value / total) for node, value in zip(strongest, held, strict=True)}


def _cantor(node: Node) -> int:
    """Cantor's pairing of layer and feature number, Neuronpedia's key of a feature."""
    x, y = node.layer, node.index or 0
    return (x + y) * (x + y + 1) // 2 + y


def _about(graph: AttributionGraph, nodes: list[Node]) -> dict[str, dict]:
    """What is known of each node beyond the schema, by id."""
    checks, biases = _node_checks(graph), _biases(graph)
    return {node.id: _about_node(graph, node, checks) | biases.get(node.id, {}) for node in nodes}


def _about_node(graph: AttributionGraph, node: Node, checks: dict) -> dict:
    from mechkit.viz.heatmap_png import grey_png

    known = {"kind": node.kind, "layer": node.layer, "pos": node.pos, "index": node.index, "name": node.name}
    about = {**known, "value": node.value, "preactivation": node.preactivation, "site": str(node.site)}
    if node.root is not None:
        about["root"] = node.root
    else:
        about["influence"] = _influence(graph, node)
    meaning = graph.meanings.get(node.id)
    if meaning is not None:
        about |= {"class": meaning.group, "class_share": meaning.share, "of": meaning.of}
    if node.id in checks:
        about["check"] = checks[node.id]
    if node.id in graph.notes:
        about["notes"] = asdict(graph.notes[node.id])
    if node.id in graph.plots:
        picture, peak = grey_png(graph.plots[node.id].clamp_min(0).numpy())
        about["plot"] = {"png": picture, "max": peak}
    return about


def _biases(graph: AttributionGraph) -> dict[str, dict]:
    """What biases add to the row of each target, by id."""
    of_biases = graph.weighted.of_kind("bias")
    sums = graph.weighted.rows.per_row(lambda block: block.values[:, block.take(of_biases)].sum(1)).tolist()
    return {node.id: {"biases": value} for node, value in zip(graph.weighted.targets, sums, strict=True)}


def _links(graph: AttributionGraph) -> tuple[list[dict], dict[str, list]]:
    """Kept edges, largest share of the answer first, and what is known of each beyond the schema."""
    sources, targets = graph.weighted.sources, graph.weighted.targets
    places, weights, through = (values.tolist() for values in graph.kept_edges)
    links = [
        {"source": sources[s].id, "target": targets[t].id, "weight": _short(weight)}
        for (t, s), weight in zip(places, weights, strict=True)
    ]
    return links, {"influence": [_short(share) for share in through], "heads": graph.edge_heads}


def _pathways(graph: AttributionGraph) -> list[dict]:
    """The strongest pathways; none where their heads would cost too much."""
    if not heads_are_affordable(graph):
        return []
    return [
        {
            "text": path.text,
            "share": path.share,
            "nodes": list(dict.fromkeys(node.id for node in path.nodes)),
            "supernodes": list(path.supernodes),
        }
        for path in graph.pathways()
    ]


def _pinned(pathways: list[dict]) -> list[str]:
    """Nodes of the subgraph that a page opens with: those of every pathway that counts beside the strongest."""
    largest = max((path["share"] for path in pathways), default=0.0)
    chosen = [path["nodes"] for path in pathways if path["share"] >= PINNED * largest]
    return list(dict.fromkeys(name for nodes in chosen for name in nodes))


def _effects(check) -> dict[str, float | str]:
    return {name: getattr(check, name) for name in ("predicted", "frozen", "measured", "answer")}


SCORES = {
    "replacement": "of the influence on the answer comes from the prompt, not from transcoder errors",
    "completeness": "of what each node receives is explained, weighted by the node's influence",
    "intervention": "rank correlation of predicted with measured effects of the kept features, nothing frozen",
}
"""What each score says, in one line."""


def level_table(graph: AttributionGraph) -> list[list[str]]:
    """Agreement of predictions with measurements by level, as text: a header and one row per level and predictor."""
    if graph.check is None or not graph.check.nodes:
        return []
    summary = graph.check.summary().rename(columns={"by": "prediction by", "spearman": "Spearman"})
    summary = summary.rename(columns=lambda name: name.replace("spearman ", "Spearman "))
    rows = [[v if isinstance(v, str) else _number(v) for v in row] for row in summary.itertuples(index=False)]
    return [list(summary.columns), *rows]


def _operands(graph: AttributionGraph) -> dict | None:
    operands = OperandGrid.operands_of(graph.meta["prompt"])
    if operands is None or not graph.plots:
        return None
    return {"names": ["a", "b"], "values": list(operands), "size": len(next(iter(graph.plots.values())))}


def node_label(graph: AttributionGraph, node: Node) -> str:
    """A node in words: what it is called, means, reads and promotes, where that is known."""
    known = label_of(graph, node)
    if known is not None:
        return known
    if node.kind in ("logit", "target"):
        return f"answer {node.name}" if node.kind == "logit" else node.name
    at = graph.meta["tokens"][node.pos or 0]
    words = {
        "token": f"token {node.name}",
        "position": f"position {node.pos}",
        "error": f"what the L{node.layer} transcoder misses at {at}",
        "bos": f"MLP {node.layer} at the start token",
    }
    return words.get(node.kind, f"L{node.layer} feature {node.index} at {at}")


def _influence(graph: AttributionGraph, node: Node) -> float:
    return float(graph.weighted.influence[graph.column_of(node)])


def _node_checks(graph: AttributionGraph) -> dict[str, dict[str, float]]:
    """Predicted and measured effects of suppressing single features, by id."""
    if graph.check is None or graph.check.change != "suppressed":
        return {}
    columns = ("predicted", "direct", "gradient", "frozen", "measured")
    values = {name: getattr(graph.check, name).tolist() for name in columns}
    alone = [(i, group[0]) for i, group in enumerate(graph.check.groups) if len(group) == 1]
    return {node.id: {name: values[name][i] for name in columns} for i, node in alone}


def _tables(graph: AttributionGraph) -> list[dict]:
    """The page's tables: supernodes suppressed, agreement by level, whole classes suppressed on many sums."""
    made = []
    if graph.supernode_checks:
        columns = ["suppress", "features", "predicted", "measured, attention and norms frozen", "measured", "answer"]
        rows = [
            [
                check.name,
                str(check.n_features),
                *map(_signed, (check.predicted, check.frozen, check.measured)),
                check.answer,
            ]
            for check in graph.supernode_checks
        ]
        note = f"A supernode's features suppressed together: change of the logit of {graph.logits[0].name}."
        made.append({"title": "Interventions", "note": note, "columns": columns, "rows": rows})
    if levels := level_table(graph):
        note = (
            f"{len(graph.check.nodes)} kept features, suppressed one at a time. Control: edge weights permuted. At "
            "level ii the last layer is exact: it feeds only logits."
        )
        made.append({"title": "Is the graph true?", "note": note, "columns": levels[0], "rows": levels[1:]})
    if graph.findings:
        note = f"Whole classes of features suppressed on {graph.findings[0].n_sums} sums that the model never saw."
        columns = ["suppress", "features per sum", "right", "last digit changed", "size changed"]
        rows = [finding.row() for finding in graph.findings]
        made.append({"title": "Two pathways?", "note": note, "columns": columns, "rows": rows})
    return made


def _signed(value: float) -> str:
    return f"{value:+.2f}".replace("-", "−")


def _number(value: float) -> str:
    return "–" if not np.isfinite(value) else f"{value:.2f}".replace("-", "−")


def _finite(value: float | None) -> float | None:
    return None if value is None or not np.isfinite(value) else float(value)


def _short(value: float) -> float:
    """To the digits that a float32 has."""
    return float(f"{value:.7g}")
