"""Transcoders from disk, in SAELens's format (without importing SAELens) and in circuit-tracer's.

In SAELens's, a folder holds one `layer_{l}/` per layer, each with `cfg.json` and `sae_weights.safetensors`, as its
`save_model` writes them. The metadata in `cfg.json` names the hooks and may name the model: its weight processing and
the hash of its weights are checked against the model, since features read weights that were processed in one way only.

>>> first, second = transcoders_for(model)                     # those of a bundled model
>>> again = load_transcoders(model.mechkit_origin.folder / "transcoders", model)
>>> torch.equal(again[0].W_enc, first.W_enc)
True
"""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from torch import Tensor

from mechkit.dictionaries.transcoder import Transcoder

CONFIG, WEIGHTS = "cfg.json", "sae_weights.safetensors"
ARCHITECTURES = ("transcoder", "skip_transcoder", "jumprelu_transcoder", "jumprelu_skip_transcoder")
"""SAELens's names of the kinds that can be read."""


def transcoders_for(model) -> list[Transcoder] | None:
    """The transcoders that come with a zoo model or lie in its folder, one per layer; None where there are none.

    Raises ValueError where they were trained on other weights than the model's.
    """
    from mechkit.zoo.folder import origin_of

    origin = origin_of(model)
    if origin is None or origin.folder is None or not (origin.folder / "transcoders").is_dir():
        return None
    return load_transcoders(origin.folder / "transcoders", model)


def load_transcoders(path: str | Path, model, *, lazy: bool = False) -> list[Any]:
    """The transcoders of every layer of `model`, on its device and in its dtype: `Transcoder`s from SAELens's format,
    `CrossLayerTranscoder`s from circuit-tracer's (`mechkit.dictionaries.circuit_tracer`).

    With `lazy`, encoders and decoders stay on disk and only the rows that are needed are read
    (`CrossLayerTranscoder`s of one layer each, from SAELens's format).
    Raises FileNotFoundError for a missing layer, ValueError for a damaged file or a transcoder of another model:
    other hooks, sizes, layers, weight processing or weights.
    """
    from mechkit.dictionaries.circuit_tracer import is_circuit_tracer, read_circuit_tracer

    path = Path(path)
    if is_circuit_tracer(path):
        return list(read_circuit_tracer(path, model, lazy=lazy))
    found = sorted(path.glob("layer_*"), key=lambda folder: folder.name)
    wanted = [f"layer_{layer}" for layer in range(model.cfg.n_layers)]
    names = [folder.name for folder in found]
    if sorted(wanted) != names:
        kind = FileNotFoundError if set(names) < set(wanted) else ValueError
        raise kind(f"'{path}' holds {names or 'no layers'}; this model needs {wanted[0]} to {wanted[-1]}")
    read = _stored_layer if lazy else _load_layer
    return [read(path / name, layer, model) for layer, name in enumerate(wanted)]


def _load_layer(path: Path, layer: int, model) -> Transcoder:
    cfg, tensors = read_saelens(path)
    hooks = _checked_hooks(path, layer, cfg, model)
    placed: dict[str, Any] = {name: t.to(model.cfg.device, model.cfg.dtype) for name, t in tensors.items()}
    return Transcoder(layer=layer, **hooks, **placed)


def _stored_layer(path: Path, layer: int, model) -> Any:
    from mechkit.dictionaries.cross_layer import CrossLayerTranscoder
    from mechkit.dictionaries.stored import Stored

    cfg, tensors = read_saelens(path, left_out=("W_enc", "W_dec"))
    hooks = _checked_hooks(path, layer, cfg, model)
    place = (model.cfg.device, model.cfg.dtype)
    placed: dict[str, Any] = {name: t.to(*place) for name, t in tensors.items()}
    W_enc, W_dec = Stored(path / WEIGHTS, "W_enc", *place, by_column=True), Stored(path / WEIGHTS, "W_dec", *place)
    return CrossLayerTranscoder(layer=layer, W_enc=W_enc, W_dec=W_dec, **hooks, **placed)


def _checked_hooks(path: Path, layer: int, cfg: dict[str, Any], model) -> dict[str, str]:
    """Hooks and name of a transcoder that fits the model. Raises ValueError for one that does not."""
    metadata = cfg.get("metadata") or {}
    _check_hooks(path, layer, metadata, model)
    check_origin(path, metadata, model)
    for key in ("d_in", "d_out"):
        if cfg[key] != model.cfg.d_model:
            raise ValueError(f"'{path}' has {key} {cfg[key]}; this model has d_model {model.cfg.d_model}")
    return {
        "hook_in": metadata["hook_name"],
        "hook_out": metadata["hook_name_out"],
        "name": metadata.get("name") or f"{path.parent.name}/{path.name}",
    }


def read_saelens(path: Path, *, left_out: Sequence[str] = ()) -> tuple[dict[str, Any], dict[str, Float[Tensor, "..."]]]:
    """The config and tensors of one SAELens transcoder, checked against each other; `left_out` ones are not read.

    Raises FileNotFoundError or ValueError where a file is missing, damaged, or of a kind that cannot be read.
    """
    cfg = _read_config(path)
    try:
        with safe_open(existing(path, WEIGHTS), "pt") as file:
            seen = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118 (no mapping)
            tensors = {name: file.get_tensor(name) for name in seen if name not in left_out}
    except (SafetensorError, OSError) as error:
        if isinstance(error, FileNotFoundError):
            raise
        raise ValueError(f"'{path / WEIGHTS}' is damaged: {error}; copy it again") from error
    shapes = _shapes(cfg)
    if seen != shapes:
        raise ValueError(f"'{path / WEIGHTS}' holds {seen}; its {CONFIG} asks for {shapes}")
    return cfg, tensors


def _read_config(path: Path) -> dict[str, Any]:
    file = existing(path, CONFIG)
    try:
        cfg = json.loads(file.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"'{file}' is damaged: {error}; copy it again") from error
    kind = cfg.get("architecture") if isinstance(cfg, dict) else None
    if kind not in ARCHITECTURES:
        raise ValueError(f"'{file}' is of architecture {kind!r}; it must be one of {', '.join(ARCHITECTURES)}")
    missing = [key for key in ("d_in", "d_out", "d_sae") if key not in cfg]
    if missing:
        raise ValueError(f"'{file}' names no {', '.join(missing)}")
    for key in ("normalize_activations", "reshape_activations"):
        if cfg.get(key, "none") != "none":
            raise ValueError(f"'{file}' has {key} {cfg[key]!r}; fold it into the weights first, only 'none' is read")
    return cfg


def _shapes(cfg: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    d_in, d_out, d_features = cfg["d_in"], cfg["d_out"], cfg["d_sae"]
    shapes = {"W_enc": (d_in, d_features), "b_enc": (d_features,), "W_dec": (d_features, d_out), "b_dec": (d_out,)}
    if "jumprelu" in cfg["architecture"]:
        shapes["threshold"] = (d_features,)
    if "skip" in cfg["architecture"]:
        shapes["W_skip"] = (d_out, d_in)
    return shapes


def _check_hooks(path: Path, layer: int, metadata: dict[str, Any], model) -> None:
    for key in ("hook_name", "hook_name_out"):
        hook = metadata.get(key)
        if not isinstance(hook, str) or hook not in model.hook_dict:
            raise ValueError(f"'{path}' has {key} {hook!r}, which is no hook of this model")
        number = re.match(r"blocks\.(\d+)\.", hook)
        if number is None or int(number[1]) != layer:
            raise ValueError(f"'{path}' has {key} {hook!r}, which is not of layer {layer}")


def check_origin(path: Path, metadata: dict[str, Any], model) -> None:
    """Raise ValueError where a dictionary's metadata name another weight processing, or other weights."""
    from mechkit.zoo.folder import origin_of, processing_of

    trained, has = metadata.get("processing"), processing_of(model)
    if trained is not None and trained != has:
        raise ValueError(
            f"'{path}' was trained on weights with processing {trained!r}, this model has {has!r}; "
            f"load the model with processing={trained!r}"
        )
    origin = origin_of(model)
    trained, has = metadata.get("weights_sha256"), origin and origin.sha256
    if trained is not None and has is not None and trained != has:
        raise ValueError(
            f"'{path}' was trained on weights with sha256 {trained[:12]}, this model's are {has[:12]}; "
            "use the dictionaries of these weights, or train them again"
        )


def existing(path: Path, name: str) -> Path:
    """The file of that name in a dictionary's folder. Raises FileNotFoundError where it is not there."""
    if not (path / name).is_file():
        raise FileNotFoundError(f"no {name} in '{path}'; a dictionary is {CONFIG} and {WEIGHTS}")
    return path / name
