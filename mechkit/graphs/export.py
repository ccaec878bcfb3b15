"""What a graph looks like outside: JSON in Neuronpedia's graph schema, and the data of its page.

Both show what pruning kept. Biases are no nodes there: the JSON keeps what they add to each target, with the
target's pre-activation, under the key `mechkit`.
"""

import json
from datetime import UTC, datetime

import numpy as np

from mechkit.graphs.graph import AttributionGraph
from mechkit.graphs.nodes import Node
from mechkit.graphs.notes import label_of
from mechkit.graphs.operands import OperandGrid
from mechkit.graphs.supernodes import supernodes

FEATURE_TYPES = {
    "feature": "cross layer transcoder",
    "error": "mlp reconstruction error",
    "token": "embedding",
    "position": "embedding",
    "bos": "embedding",
    "logit": "logit",
}
"""Neuronpedia's names of our kinds of nodes."""


def graph_json(graph: AttributionGraph) -> str:
    """The kept part of the graph as JSON text, valid against Neuronpedia's graph schema."""
    sources = [graph.weighted.sources[i] for i in graph.kept_sources]
    return json.dumps(
        {
            "metadata": _metadata(graph),
            "qParams": {"pinnedIds": [], "supernodes": _supernode_lists(graph), "linkType": "both", "clickedId": ""},
            "nodes": [_json_node(graph, node) for node in [*sources, *graph.logits]],
            "links": [{"source": s, "target": t, "weight": weight} for s, t, weight, _ in _edges(graph)],
            "mechkit": _rest(graph),
        },
        ensure_ascii=False,
        allow_nan=False,
    )


def _metadata(graph: AttributionGraph) -> dict:
    made = datetime.now(UTC)
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
    return [[name, *(node.id for node in nodes)] for name, nodes in supernodes(graph, kept=True).items()]


def _json_node(graph: AttributionGraph, node: Node) -> dict:
    layer = {"token": "E", "position": "E", "logit": str(node.layer + 1)}.get(node.kind, str(node.layer))
    feature = {"feature": _cantor(node), "error": -1}.get(node.kind, node.index)
    return {
        "node_id": node.id,
        "feature": feature,
        "layer": layer,
        "ctx_idx": node.pos or 0,
        "feature_type": FEATURE_TYPES[node.kind],
        "jsNodeId": f"{node.id}-0",
        "clerp": node_label(graph, node),
        "influence": None if node.kind == "logit" else _influence(graph, node),
        "activation": node.value if node.kind == "feature" else None,
        "token_prob": _probability(graph, node),
        "is_target_logit": node.kind == "logit",
        "reverse_ctx_idx": 0,
    }


def _cantor(node: Node) -> int:
    """Cantor's pairing of layer and feature number, Neuronpedia's key of a feature."""
    x, y = node.layer, node.index or 0
    return (x + y) * (x + y + 1) // 2 + y


def _rest(graph: AttributionGraph) -> dict:
    """What the schema has no place for."""
    biases = graph.weighted.of_kind("bias")
    sums = graph.weighted.rows.per_row(lambda block: block.values[:, block.take(biases)].sum(1)).tolist()
    targets = {
        node.id: {"preactivation": node.preactivation, "biases": bias}
        for node, bias in zip(graph.weighted.targets, sums, strict=True)
        if node.root is not None or bool(graph.kept.nodes[graph.column_of(node)])
    }
    scores = {name: _finite(value) for name, value in graph.scores.items()}
    return {"made": dict(graph.meta), "scores": scores, "targets": targets, "exact_error": _exact_error(graph)}


def _exact_error(graph: AttributionGraph) -> float | None:
    return None if graph.check is None else graph.check.exact_error


def page_payload(graph: AttributionGraph) -> dict:
    """The data of the graph's page, `viz.graph_page.render_graph_page`."""
    sources = [graph.weighted.sources[i] for i in graph.kept_sources]
    checks = _node_checks(graph)
    groups = {node.id: name for name, nodes in graph.supernodes.items() for node in nodes}
    answer, tokens = graph.logits[0], list(graph.meta["tokens"])
    return {
        "title": graph.meta["prompt"],
        "model": graph.meta["model"],
        "tokens": tokens,
        "n_layers": graph.attribution.frozen.model.cfg.n_layers,
        "answer": {"token": answer.name, "probability": _probability(graph, answer)},
        "scores": [_score(name, value) for name, value in graph.scores.items() if _finite(value) is not None],
        "operands": _operands(graph),
        "nodes": [_page_node(graph, node, checks, groups) for node in [*sources, *graph.logits]],
        "edges": [
            {"source": s, "target": t, "weight": weight, "influence": share} for s, t, weight, share in _edges(graph)
        ],
        "pathways": [
            {"text": path.text, "share": path.share, "nodes": list(dict.fromkeys(node.id for node in path.nodes))}
            for path in graph.pathways()
        ],
        "tables": _tables(graph),
        "made": {name: str(value) for name, value in graph.meta.items() if value and name not in ("tokens", "prompt")},
    }


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


def _score(name: str, value: float | None) -> dict:
    return {"name": name, "value": value, "meaning": SCORES[name]}


def _operands(graph: AttributionGraph) -> dict | None:
    operands = OperandGrid.operands_of(graph.meta["prompt"])
    if operands is None or not graph.plots:
        return None
    return {"names": ["a", "b"], "values": list(operands), "size": len(next(iter(graph.plots.values())))}


def _page_node(graph: AttributionGraph, node: Node, checks: dict, groups: dict[str, str]) -> dict:
    from mechkit.viz.heatmap_png import grey_png

    meaning = graph.meanings.get(node.id)
    shown = {
        "id": node.id,
        "kind": node.kind,
        "layer": node.layer,
        "pos": node.pos,
        "label": node_label(graph, node),
        "class": None if meaning is None else meaning.group,
        "class_share": None if meaning is None else meaning.share,
        "supernode": groups.get(node.id),
        "activation": node.value if node.kind == "feature" else None,
        "influence": 1.0 if node.kind == "logit" else _influence(graph, node),
        "check": checks.get(node.id),
        "text": str(node.site),
    }
    if node.id in graph.plots:
        picture, peak = grey_png(graph.plots[node.id].clamp_min(0).numpy())
        shown["plot"] = {"png": picture, "max": peak}
    return shown


def node_label(graph: AttributionGraph, node: Node) -> str:
    """A node in words: what it is called, means, reads and promotes, where that is known."""
    known = label_of(graph, node)
    if known is not None:
        return known
    if node.kind == "logit":
        return f"answer {node.name}"
    at = graph.meta["tokens"][node.pos or 0]
    words = {
        "token": f"token {node.name}",
        "position": f"position {node.pos}",
        "error": f"what the L{node.layer} transcoder misses at {at}",
        "bos": f"MLP {node.layer} at the start token",
    }
    return words.get(node.kind, f"L{node.layer} feature {node.index} at {at}")


def _edges(graph: AttributionGraph) -> list[tuple[str, str, float, float]]:
    """Kept edges by node id with signed weight and share of the answer, largest share first."""
    sources, targets = graph.weighted.sources, graph.weighted.targets
    places, weights, through = (values.tolist() for values in graph.kept_edges)
    return [
        (sources[s].id, targets[t].id, weight, share)
        for (t, s), weight, share in zip(places, weights, through, strict=True)
    ]


def _influence(graph: AttributionGraph, node: Node) -> float:
    return float(graph.weighted.influence[graph.column_of(node)])


def _probability(graph: AttributionGraph, node: Node) -> float | None:
    return None if node.kind != "logit" else graph.probabilities[node.id]


def _node_checks(graph: AttributionGraph) -> dict[str, dict[str, float]]:
    if graph.check is None:
        return {}
    columns = ("predicted", "direct", "frozen", "measured")
    values = {name: getattr(graph.check, name).tolist() for name in columns}
    return {node.id: {name: values[name][i] for name in columns} for i, node in enumerate(graph.check.nodes)}


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
