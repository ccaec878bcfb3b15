"""Graphs of other tools, as circuit-tracer and Neuronpedia write them: what their files leave out, filled in.

Their nodes say kind, layer and feature number in words and paired numbers, and `influence` there is the share that a
node and all stronger ones hold together. The shares shown here are computed again from the links.
"""

import re
from math import isqrt

import numpy as np

from mechkit.graphs.nodes import EMBEDDING_LAYER

_TYPES = (("error", "error"), ("embedding", "token"), ("logit", "logit"), ("bias", "bias"))
_ID = re.compile(r"(?:E|\d+)_(\d+)_\d+")
_QUOTED = re.compile(r'^(?:Output|Emb:)\s*"(.*)"', re.S)


def completed(document: dict) -> dict:
    """The document with all of its `mechkit` part; one that has it comes back as it is."""
    rest = document.get("mechkit", {})
    if "nodes" in rest and "influence" in rest.get("edges", {}):
        return document
    shares, through = influences(document)
    nodes, n_layers = (rest["nodes"], rest["n_layers"]) if "nodes" in rest else _nodes(document)
    nodes = {name: {"influence": shares[name], **about} for name, about in nodes.items()}
    made = {"generator": _generator(document["metadata"])}
    filled = {"made": made, "scores": {}, "n_layers": n_layers, "nodes": nodes}
    edges = {**rest.get("edges", {}), "influence": through}
    return {**document, "mechkit": {**filled, **rest, "edges": edges}}


def _nodes(document: dict) -> tuple[dict[str, dict], int]:
    """What the schema's parts say of each node, by id, and the number of layers."""
    nodes = {node["node_id"]: _about(node, document["metadata"]) for node in document["nodes"]}
    own = [about["layer"] for about in nodes.values() if about["kind"] not in ("logit", "token")]
    tops = [about["layer"] for about in nodes.values() if about["kind"] == "logit"]
    # a logit of circuit-tracer is one layer above the unembedding
    n_layers = max([layer + 1 for layer in own] + [layer - 1 for layer in tops] + [0])
    for about in nodes.values():
        if about["kind"] == "logit":
            about["layer"] = n_layers
    return nodes, n_layers


def _about(node: dict, metadata: dict) -> dict:
    kind = next((ours for word, ours in _TYPES if word in node["feature_type"]), "feature")
    layer = EMBEDDING_LAYER if str(node["layer"]) == "E" else int(node["layer"])
    dictionary = re.sub(r"[\[\]@#<>]+", "-", str(metadata["scan"])) or "dictionary"
    name = metadata["prompt_tokens"][node["ctx_idx"]] if kind == "token" else dictionary
    if kind == "logit":
        quoted = _QUOTED.match(node["clerp"])
        name = quoted[1] if quoted else node["clerp"]
    pos = None if kind == "bias" else node["ctx_idx"]
    return {"kind": kind, "layer": layer, "pos": pos, "index": _index(node, layer, kind), "name": name}


def _index(node: dict, layer: int, kind: str) -> int | None:
    """Feature number or token id: from the id, or from Cantor's pairing of layer and number."""
    if kind in ("error", "bias"):
        return None
    named, paired = _ID.fullmatch(node["node_id"]), node["feature"]
    if named is not None:
        return int(named[1])
    if kind != "feature" or paired is None or paired < 0:
        return paired
    diagonal = (isqrt(8 * paired + 1) - 1) // 2
    number = paired - diagonal * (diagonal + 1) // 2
    return number if diagonal - number == layer else paired


def _generator(metadata: dict) -> str:
    generator = (metadata.get("info") or {}).get("generator") or {}
    return " ".join(str(generator[name]) for name in ("name", "version") if generator.get(name)) or "not named"


def influences(document: dict) -> tuple[dict[str, float], list[float]]:
    """Share of the answer through each node by id, and along each link, over all paths that the links make.

    A target's inputs count by their share of its incoming sizes; influence starts at the logits by their probability.
    """
    names = {node["node_id"]: i for i, node in enumerate(document["nodes"])}
    links = document["links"]
    s, t = (np.array([names[link[end]] for link in links], dtype=int) for end in ("source", "target"))
    size = np.abs(np.array([link["weight"] for link in links], dtype=float))
    total = np.bincount(t, size, len(names))
    share = np.divide(size, total[t], out=np.zeros_like(size), where=total[t] > 0)
    start = np.array([_weight(node) for node in document["nodes"]])
    start = start / start.sum() if start.sum() > 0 else start
    reached = start
    for _ in range(_depth(document)):
        reached = start + np.bincount(s, reached[t] * share, len(names))
    return dict(zip(names, reached.tolist(), strict=True)), (reached[t] * share).tolist()


def _weight(node: dict) -> float:
    if "logit" not in node["feature_type"]:
        return 0.0
    probability = node.get("token_prob")
    return 1.0 if probability is None else float(probability)


def _depth(document: dict) -> int:
    """Steps that the longest path can have: layers, with attention and MLP nodes apart, and the ends."""
    return 2 * len({str(node["layer"]) for node in document["nodes"]}) + 2
