"""Transcoders in circuit-tracer's folder formats.

Per layer: `layer_{i}.safetensors` with `W_enc` and `W_dec` `[feature, d_model]`, `b_enc`, `b_dec`, and `W_skip`,
`activation_function.threshold` or `k` where there are such. Across layers: `W_enc_{i}.safetensors` with `W_enc_{i}`,
`b_enc_{i}`, `b_dec_{i}` and perhaps `threshold_{i}`, and `W_dec_{i}.safetensors` with `W_dec_{i}`
`[feature, n_layers - i, d_model]`. `config.yaml` says what they read and write: `feature_input_hook`,
`feature_output_hook`, `model_kind`, `model_name`; circuit-tracer's are trained on unprocessed weights, and ours may add
`processing`.
"""

from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from mechkit.dictionaries.cross_layer import CrossLayerTranscoder
from mechkit.dictionaries.loading import check_origin
from mechkit.dictionaries.stored import Stored
from mechkit.dictionaries.transcoder import after_norm, mlp_hooks, mlp_input_norm

CONFIG = "config.yaml"
_KINDS = ("transcoder_set", "cross_layer_transcoder")
_THRESHOLD = "activation_function.threshold"


def is_circuit_tracer(path: Path) -> bool:
    """Whether a folder holds transcoders in one of these formats."""
    return any(path.glob("layer_*.safetensors")) or any(path.glob("W_enc_*.safetensors"))


def read_circuit_tracer(path: Path, model, *, lazy: bool = False) -> list[CrossLayerTranscoder]:
    """The transcoders of every layer of `model` in the folder `path`; with `lazy`, matrices stay on disk.

    Raises FileNotFoundError for a missing file, ValueError for a damaged one and for transcoders of another model:
    other hooks, sizes, layers or weight processing.
    """
    config = read_config(path)
    across = any(path.glob("W_enc_*.safetensors"))
    kind = config.get("model_kind", _KINDS[across])
    if kind != _KINDS[across]:
        raise ValueError(f"'{path / CONFIG}' says model_kind {kind!r}, and the files are of a {_KINDS[across]}")
    _check_layers(path, "W_enc" if across else "layer", model.cfg.n_layers)
    if across:
        _check_layers(path, "W_dec", model.cfg.n_layers)
    check_origin(path, {"processing": "none", **config}, model)
    return [_layer(path, layer, model, config, across, lazy) for layer in range(model.cfg.n_layers)]


def read_config(path: Path) -> dict[str, Any]:
    """What `config.yaml` says; nothing where there is none. Raises ValueError where it cannot be read."""
    import yaml

    if not (path / CONFIG).is_file():
        return {}
    try:
        config = yaml.safe_load((path / CONFIG).read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"'{path / CONFIG}' is damaged: {' '.join(str(error).split())}; copy it again") from error
    if not isinstance(config, dict):
        raise ValueError(f"'{path / CONFIG}' holds no settings; write feature_input_hook and feature_output_hook")
    return config


def _check_layers(path: Path, stem: str, n_layers: int) -> None:
    wanted = {f"{stem}_{layer}.safetensors" for layer in range(n_layers)}
    found = {file.name for file in path.glob(f"{stem}_*.safetensors")}
    if found - wanted:
        raise ValueError(f"'{path}' holds {len(found)} layers of {stem}; this model has {n_layers}")
    if wanted - found:
        raise FileNotFoundError(f"'{path}' has no {sorted(wanted - found)[0]}; this model needs 0 to {n_layers - 1}")


def _layer(path: Path, layer: int, model, config: dict, across: bool, lazy: bool) -> CrossLayerTranscoder:
    end = f"_{layer}" if across else ""
    encoder = path / (f"W_enc_{layer}.safetensors" if across else f"layer_{layer}.safetensors")
    decoder = path / f"W_dec_{layer}.safetensors" if across else encoder
    placed = (model.cfg.device, model.cfg.dtype)
    W_enc, W_dec = (Stored(file, f"{name}{end}", *placed) for file, name in ((encoder, "W_enc"), (decoder, "W_dec")))
    small = _small(encoder, {f"W_enc{end}", f"W_dec{end}"})
    _check_shapes(encoder, end, small, W_enc.shape, W_dec.shape, layer, model.cfg, across)
    threshold = small.get(f"threshold{end}", small.get(_THRESHOLD))
    hook_in, hook_out, gain, shift = _hooks(path, layer, config, model)
    tensor = lambda t: None if t is None else t.to(*placed)  # noqa: E731
    skip = tensor(small.get("W_skip"))
    b_dec = small[f"b_dec{end}"].to(*placed)
    if skip is not None:
        b_dec = b_dec if shift is None else b_dec + skip @ shift
        skip = skip if gain is None else skip * gain
    whole = lambda W: W if lazy else W.rows(range(W.shape[0]))  # noqa: E731
    return CrossLayerTranscoder(
        layer=layer,
        W_enc=whole(W_enc),
        b_enc=small[f"b_enc{end}"].to(*placed),
        W_dec=whole(W_dec),
        b_dec=b_dec,
        hook_in=hook_in,
        hook_out=hook_out,
        threshold=None if threshold is None else tensor(threshold.reshape(-1)),
        W_skip=skip,
        k=int(small["k"]) if "k" in small else None,
        gain=gain,
        shift=shift,
        name=str(config.get("name") or path.name),
    )


def _small(file: Path, left_out: set[str]) -> dict[str, Any]:
    """All tensors of a file but its matrices of features."""
    try:
        with safe_open(file, "pt") as tensors:
            names = set(tensors.keys())
            return {name: tensors.get_tensor(name) for name in sorted(names - left_out)}
    except (SafetensorError, OSError) as error:
        raise ValueError(f"'{file}' is damaged: {error}; copy it again") from error


def _check_shapes(file, end: str, small: dict, encoder, decoder, layer: int, cfg, across: bool) -> None:
    n, d = encoder[0], cfg.d_model
    wanted = {f"W_enc{end}": (n, d), f"W_dec{end}": (n, cfg.n_layers - layer, d) if across else (n, d)}
    wanted |= {f"b_enc{end}": (n,), f"b_dec{end}": (d,)}
    wanted |= {"W_skip": (d, d)} if "W_skip" in small else {}
    seen = {f"W_enc{end}": encoder, f"W_dec{end}": decoder}
    seen |= {name: tuple(small[name].shape) for name in wanted if name in small}
    wrong = [name for name in wanted if seen.get(name) != wanted[name]]
    if wrong:
        wrong = [f"{name} {seen.get(name, 'missing')} instead of {wanted[name]}" for name in wrong]
        raise ValueError(f"'{file}' does not fit a model of {cfg.n_layers} layers and d_model {d}: {', '.join(wrong)}")


def _hooks(path: Path, layer: int, config: dict, model) -> tuple[str, str, Any, Any]:
    """Where features read and write, as our hooks, with the norm's weights where they read after those."""
    given_in = config.get("feature_input_hook") or "hook_resid_mid"
    given_out = config.get("feature_output_hook") or "hook_mlp_out"
    norm = mlp_input_norm(model, layer)
    own = mlp_hooks(model, layer)[0]
    inputs: dict[str, tuple] = {"hook_resid_mid": (None, None), "ln2.hook_normalized": (None, None)}
    if given_in == "mlp.hook_in":
        weights = (None, None) if norm is None else (getattr(norm, "w", None), getattr(norm, "b", None))
        gain, shift = (None if w is None else w.detach() for w in weights)
        hook_in = own
    elif given_in in inputs and f"blocks.{layer}.{given_in}" in model.hook_dict:
        hook_in, gain, shift = f"blocks.{layer}.{given_in}", None, None
    else:
        raise ValueError(
            f"'{path}' reads {given_in!r} (feature_input_hook), which this model has not, or graphs do not follow; "
            "use transcoders of hook_resid_mid, ln2.hook_normalized or mlp.hook_in"
        )
    if given_out not in ("hook_mlp_out", "mlp.hook_out"):
        raise ValueError(
            f"'{path}' writes {given_out!r} (feature_output_hook); use transcoders of hook_mlp_out or mlp.hook_out"
        )
    before = given_out == "mlp.hook_out" and after_norm(model, layer, "mlp") is not None
    return hook_in, f"blocks.{layer}.{'mlp.hook_out' if before else 'hook_mlp_out'}", gain, shift
