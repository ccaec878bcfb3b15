"""What a graph's file must be: Neuronpedia's graph schema, and ids that can be told apart.

A document is the file's JSON: `metadata`, `qParams`, `nodes`, `links`, and under `mechkit` what the schema has no place
for. Files of circuit-tracer and Neuronpedia have no `mechkit`; `foreign.completed` fills in what can be computed.
"""

import json
import math
from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

from mechkit.core.site import Site

KINDS = ("feature", "error", "token", "position", "bos", "bias", "logit", "target")
"""Kinds of nodes that a file can hold."""

_PARTS = {"metadata": dict, "nodes": list, "links": list}
_NODE = {
    "node_id": str,
    "feature": (int, type(None)),
    "layer": (str, int),
    "ctx_idx": int,
    "feature_type": str,
    "jsNodeId": str,
    "clerp": str,
}
_LINK = {"source": str, "target": str, "weight": (int, float)}
_MEASURES = ("activation", "influence", "token_prob")
_JSON_NAMES = {dict: "an object", list: "a list", str: "text", int: "a whole number", float: "a number"}


def read_document(path: str | PathLike) -> dict:
    """The checked document of a file. Raises ValueError, naming the file, for one that is damaged or no graph."""
    try:
        document = json.loads(Path(path).read_bytes(), parse_constant=_no_number)
        check_document(document)
    except UnicodeDecodeError as error:
        raise ValueError(f"'{path}' is no JSON file: byte {error.start} is not UTF-8 text") from error
    except json.JSONDecodeError as error:
        raise ValueError(
            f"'{path}' is damaged: {error.msg} at line {error.lineno}, column {error.colno}; save the graph again"
        ) from error
    except RecursionError as error:
        raise ValueError(f"'{path}' is no graph: its JSON is nested too deep") from error
    except ValueError as error:
        raise ValueError(f"'{path}' is no graph that can be shown: {error}") from error
    return document


def check_document(document: Any) -> None:
    """Raise ValueError, naming what is wrong and where, unless `document` is a graph that can be shown."""
    _require(document, dict, "its top level")
    for name, kind in _PARTS.items():
        _require_key(document, name, kind, "it")
    tokens = _tokens(document["metadata"])
    known = _check_nodes(document["nodes"], len(tokens))
    _check_links(document["links"], known)
    _check_view(document.get("qParams", {}), known)
    if "mechkit" in document:
        _check_rest(document["mechkit"], document, known)
    _check_finite(document, "")


def _tokens(metadata: dict) -> Sequence[str]:
    for name in ("slug", "scan", "prompt"):
        _require_key(metadata, name, object, "metadata")
    tokens = _require_key(metadata, "prompt_tokens", list, "metadata")
    for i, token in enumerate(tokens):
        _require(token, str, f"metadata.prompt_tokens[{i}]")
    return tokens


def _check_nodes(nodes: list, n_tokens: int) -> set[str]:
    seen: set[str] = set()
    for i, node in enumerate(nodes):
        where = f"nodes[{i}]"
        _require(node, dict, where)
        for name, kind in _NODE.items():
            _require_key(node, name, kind, where)
        for name in _MEASURES:
            _require(node.get(name), (int, float, type(None)), f"{where}.{name}")
        name = node["node_id"]
        if name in seen:
            raise ValueError(f"two nodes are called '{name}' (the second is {where}); ids must be unique")
        if not 0 <= node["ctx_idx"] < n_tokens:
            raise ValueError(f"node '{name}' is at position {node['ctx_idx']}; the prompt has {n_tokens} tokens")
        if str(node["layer"]) != "E" and not str(node["layer"]).isdecimal():
            raise ValueError(f"node '{name}' is in layer {node['layer']!r}; a layer is a whole number or E")
        seen.add(name)
    return seen


def _check_links(links: list, known: set[str]) -> None:
    for i, link in enumerate(links):
        _require(link, dict, f"links[{i}]")
        for name, kind in _LINK.items():
            _require_key(link, name, kind, f"links[{i}]")
        for end in ("source", "target"):
            if link[end] not in known:
                raise ValueError(f"links[{i}].{end} is '{link[end]}', which is not a node of the graph")


def _check_view(view: Any, known: set[str]) -> None:
    _require(view, dict, "qParams")
    _check_ids(view.get("pinnedIds") or [], known, "qParams.pinnedIds")
    groups = _require(view.get("supernodes") or [], list, "qParams.supernodes")
    names = set()
    for i, group in enumerate(groups):
        where = f"qParams.supernodes[{i}]"
        if not _require(group, list, where):
            raise ValueError(f"{where} is empty; it needs a name and node ids")
        name = _require(group[0], str, f"{where}[0]")
        if name in names:
            raise ValueError(f"two supernodes are called '{name}'; names must be unique")
        names.add(name)
        _check_ids(group[1:], known, where)


def _check_rest(rest: Any, document: dict, known: set[str]) -> None:
    _require(rest, dict, "mechkit")
    if "nodes" in rest:
        n_layers = _require_key(rest, "n_layers", int, "mechkit")
        about = _require(rest["nodes"], dict, "mechkit.nodes")
        _check_ids(list(about), known, "mechkit.nodes")
        missing = known - about.keys()
        if missing:
            raise ValueError(f"mechkit.nodes has nothing of '{min(missing)}', which is a node of the graph")
        for name, node in about.items():
            _check_about(node, name, n_layers, len(document["metadata"]["prompt_tokens"]))
    for name, values in _require(rest.get("edges", {}), dict, "mechkit.edges").items():
        if len(_require(values, list, f"mechkit.edges.{name}")) != len(document["links"]):
            raise ValueError(f"mechkit.edges.{name} has {len(values)} entries for {len(document['links'])} links")
    for i, pathway in enumerate(_require(rest.get("pathways", []), list, "mechkit.pathways")):
        _require(pathway, dict, f"mechkit.pathways[{i}]")
        _check_ids(pathway.get("nodes") or [], known, f"mechkit.pathways[{i}].nodes")


def _check_about(node: Any, name: str, n_layers: int, n_tokens: int) -> None:
    where = f"mechkit.nodes.{name}"
    if _require(node, dict, where).get("kind") not in KINDS:
        raise ValueError(f"node '{name}' is of kind {node.get('kind')!r}; kinds are {', '.join(KINDS)}")
    if not -1 <= _require_key(node, "layer", int, where) <= n_layers:
        raise ValueError(f"node '{name}' is in layer {node['layer']}; layers here are -1 to {n_layers}")
    pos = _require(node.get("pos"), (int, type(None)), f"{where}.pos")
    if pos is not None and not 0 <= pos < n_tokens:
        raise ValueError(f"node '{name}' is at position {pos}; the prompt has {n_tokens} tokens")
    for part in ("index", "value", "preactivation", "influence", "root"):
        _require(node.get(part), (int, float, type(None)), f"{where}.{part}")
    if node.get("site") is not None:
        try:
            Site.parse(_require(node["site"], str, f"{where}.site"))
        except ValueError as error:
            raise ValueError(f"{where}.site: {error}") from error
    plot = _require(node.get("plot") or {}, dict, f"{where}.plot")
    if plot and not str(plot.get("png")).startswith("data:image/png;base64,"):
        raise ValueError(f"the plot of node '{name}' must be a PNG data URI")


def _check_ids(ids: Any, known: set[str], where: str) -> None:
    for name in _require(ids, list, where):
        if not isinstance(name, str) or name not in known:
            raise ValueError(f"{where} names {name!r}, which is not a node of the graph")


def _require(value: Any, kind: Any, where: str) -> Any:
    kinds = kind if isinstance(kind, tuple) else (kind,)
    if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds and object not in kinds):
        wanted = " or ".join(_JSON_NAMES.get(each, "null") for each in kinds)
        raise ValueError(f"{where} is {_shown(value)}; it must be {wanted}")
    return value


def _require_key(holder: Mapping, name: str, kind: Any, where: str) -> Any:
    if name not in holder:
        raise ValueError(f"{where} has no {name!r}; a graph's file follows Neuronpedia's graph schema")
    return _require(holder[name], kind, f"{where}.{name}" if where != "it" else name)


def _shown(value: Any) -> str:
    text = json.dumps(value, default=str)
    return text if len(text) <= 40 else f"{text[:37]}..."


def _check_finite(value: Any, where: str) -> None:
    if isinstance(value, dict):
        for key, item in value.items():
            _check_finite(item, f"{where}.{key}" if where else str(key))
    elif isinstance(value, list):
        for i, item in enumerate(value):
            _check_finite(item, f"{where}[{i}]")
    elif isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{where} is {value}; numbers must be finite, or null where there is none")


def _no_number(text: str) -> Any:
    raise ValueError(f"it holds {text}, which JSON has not; write null where there is no number")
