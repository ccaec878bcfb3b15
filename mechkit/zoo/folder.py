"""Model folders: `config.json`, `model.safetensors` and `tokenizer.json`, and nothing that runs code.

`config.json` holds arguments of TransformerLens's `HookedTransformerConfig`, and under the key "mechkit" what
mechkit needs to know: the weight processing already done, which tokenizer class reads `tokenizer.json`, and how
the model was made. The weights have HookedTransformer's parameter names.

>>> sha256 = save_folder(model, "mine", processing="folded")
>>> torch.equal(load_folder("mine").W_E, model.W_E)
True
"""

import hashlib
import json
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor
from transformer_lens import HookedTransformer, HookedTransformerConfig

from mechkit.core.files import write_atomic
from mechkit.zoo.tokenizer import WordTokenizer

CONFIG, WEIGHTS, TOKENIZER = "config.json", "model.safetensors", "tokenizer.json"
REBUILT = ("mask", "IGNORE", "rotary_sin", "rotary_cos")
"""Last parts of the names of buffers that the model makes itself."""
RUN_TIME = {"device", "dtype", "seed", "init_weights", "tokenizer_prepends_bos", "n_params", "tokenizer_name"}
"""Settings that belong to a run and not to the model."""
SPECIAL = {
    "bos_token": ("<s>", "<bos>", "<|begin_of_text|>", "<|endoftext|>"),
    "eos_token": ("</s>", "<eos>", "<|end_of_text|>", "<|endoftext|>"),
    "unk_token": ("<unk>",),
    "pad_token": ("<pad>",),
}
"""Names that special tokens go by in a `tokenizer.json`, which does not say which is which."""


@dataclass(frozen=True)
class Origin:
    """Where a loaded model came from, kept on it as `model.mechkit_origin`."""

    name: str
    """What was asked for: a zoo name, a folder or a Hub name."""
    processing: str
    """The weight processing done: "none" or "folded"."""
    sha256: str | None = None
    """Hash of the weights file as stored; None for a Hub model."""
    folder: Path | None = None
    """The folder it was read from; None for a Hub model."""


def save_folder(
    model: HookedTransformer,
    path: str | Path,
    *,
    processing: str,
    tokenizer_json: str | None = None,
    about: dict[str, Any] | None = None,
    dtype: torch.dtype | None = None,
) -> str:
    """Write `model` as a folder; returns the sha256 of its weights file.

    `processing` says what was done to the weights ("none" or "folded"); `about` joins the "mechkit" part of
    `config.json` (tokenizer class, provenance). `tokenizer_json` defaults to the model's own tokenizer, if any.
    With `dtype` the weights are rounded to it in the file; the folder still loads in the model's own dtype.
    """
    path = Path(path)
    path.mkdir(parents=True, exist_ok=True)
    kept = {n: p.detach().cpu() for n, p in model.state_dict().items() if not _rebuilt(n)}
    weights = save({n: p.to(dtype or p.dtype).contiguous() for n, p in kept.items()})
    runs_in = {} if dtype is None else {"dtype": str(model.cfg.dtype).removeprefix("torch.")}
    config = {**_settings(model.cfg), "mechkit": {"processing": processing, **runs_in, **(about or {})}}
    write_atomic(path / CONFIG, json.dumps(config, indent=1) + "\n")
    write_atomic(path / WEIGHTS, weights)
    if tokenizer_json is None and model.tokenizer is not None:
        tokenizer_json = str(model.tokenizer.backend_tokenizer.to_str())  # pyright: ignore
    if tokenizer_json is not None:
        write_atomic(path / TOKENIZER, tokenizer_json)
    return hashlib.sha256(weights).hexdigest()


def load_folder(
    path: str | Path, *, name: str | None = None, device: str | None = None, dtype: torch.dtype | None = None
) -> HookedTransformer:
    """The model in a folder, in evaluation mode, with its `Origin` as `model.mechkit_origin`.

    `device` defaults to TransformerLens's choice, `dtype` to the one that `config.json` names under "mechkit", else to
    that of the stored weights. Raises FileNotFoundError for a missing file, ValueError for a damaged one or for weights
    that do not fit the config.
    """
    path = Path(path)
    if not path.is_dir():
        raise FileNotFoundError(f"no folder '{path}'; a model folder holds {CONFIG} and {WEIGHTS}")
    settings, about = read_config(path)
    weights = _read_weights(path)
    dtype = dtype or _named_dtype(path, about) or next(iter(weights.values())).dtype
    model = _build(path, settings, device, dtype)
    _fill(model, weights, path)
    tokenizer = read_tokenizer(path, about)
    if tokenizer is not None:
        model.set_tokenizer(tokenizer, default_padding_side="right")
    processing = about.get("processing", "none")
    remember(model, Origin(name or str(path), processing, file_hash(path / WEIGHTS), path))
    return model.eval()


def remember(model: HookedTransformer, origin: Origin) -> None:
    """Keep `origin` on the model, as the plain attribute `mechkit_origin`."""
    vars(model)["mechkit_origin"] = origin


def origin_of(model: HookedTransformer) -> Origin | None:
    """Where `load` had the model from; None for a model made elsewhere."""
    return vars(model).get("mechkit_origin")


def read_config(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Arguments of `HookedTransformerConfig`, and the "mechkit" part."""
    file = _existing(path, CONFIG)
    try:
        settings = json.loads(file.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"'{file}' is damaged: {error}; copy the folder again") from error
    if not isinstance(settings, dict) or not isinstance(settings.get("mechkit", {}), dict):
        raise ValueError(f"'{file}' must hold one object of settings, with an object under 'mechkit' if any")
    about = settings.pop("mechkit", {})
    known = {field.name: field for field in fields(HookedTransformerConfig)}
    unknown = sorted(set(settings) - set(known))
    missing = sorted(n for n, f in known.items() if f.default is MISSING and n not in settings)
    if unknown or missing:
        raise ValueError(
            f"'{file}' does not describe a HookedTransformer: unknown settings {unknown}, missing {missing}"
        )
    return settings, about


def read_tokenizer(path: Path, about: dict[str, Any]):
    """The folder's tokenizer, strict where "mechkit" says `"tokenizer": "words"`; None without `tokenizer.json`."""
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    file = path / TOKENIZER
    if not file.is_file():
        return None
    try:
        backend = Tokenizer.from_str(file.read_text())
    except Exception as error:  # the Rust side raises plain Exception
        raise ValueError(f"'{file}' is damaged: {error}; copy the folder again") from error
    if about.get("tokenizer") == "words":
        named = {"name": about.get("called", path.name), "knows": about.get("knows", "")}
        return WordTokenizer(backend, **named, any_case=about.get("any_case", False))
    words = backend.get_vocab()
    special = {role: next((w for w in names if w in words), None) for role, names in SPECIAL.items()}
    # TransformerLens re-reads a tokenizer that does not say that it adds a BOS, from a name it may not have.
    prepends = bool(backend.encode("").ids)
    return PreTrainedTokenizerFast(tokenizer_object=backend, name_or_path=str(path), add_bos_token=prepends, **special)


def file_hash(file: Path) -> str:
    """sha256 of a file, in hexadecimal."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def processing_of(model: HookedTransformer) -> str:
    """The weight processing of a model: "none" or "folded".

    What `load` recorded; for a model made elsewhere, "folded" where its norms carry no weights.
    """
    origin = origin_of(model)
    if origin is not None:
        return origin.processing
    return "folded" if str(model.cfg.normalization_type).endswith("Pre") else "none"


def fold(model: HookedTransformer) -> None:
    """Process the weights in place: norms folded in, writing weights and unembedding centred, value biases folded.

    The log-probabilities stay as they were. RMSNorm models keep their mean: theirs is not removed by the norm.
    """
    rms = str(model.cfg.normalization_type).startswith("RMS")
    capped = model.cfg.output_logits_soft_cap > 0
    model.load_and_process_state_dict(model.state_dict(), center_writing_weights=not rms, center_unembed=not capped)


def _build(path: Path, settings: dict[str, Any], device: str | None, dtype: torch.dtype) -> HookedTransformer:
    try:
        cfg = HookedTransformerConfig(**{**settings, "device": device, "dtype": dtype, "init_weights": False})
        return HookedTransformer(cfg)
    except Exception as error:  # TransformerLens raises whatever its arithmetic meets
        raise ValueError(f"'{path / CONFIG}' does not describe a HookedTransformer: {error}") from error


def _named_dtype(path: Path, about: dict[str, Any]) -> torch.dtype | None:
    name = about.get("dtype")
    found = None if name is None else getattr(torch, str(name), None)
    if name is not None and not isinstance(found, torch.dtype):
        raise ValueError(f"'{path / CONFIG}' names the dtype {name!r}; it is one of torch's, such as float32")
    return found


def _read_weights(path: Path) -> dict[str, Tensor]:
    file = _existing(path, WEIGHTS)
    try:
        weights = load_file(file)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"'{file}' is damaged: {error}; copy it again") from error
    if not weights:
        raise ValueError(f"'{file}' holds no weights; copy it again")
    return weights


def _fill(model: HookedTransformer, weights: dict[str, Tensor], path: Path) -> None:
    own = {name: tuple(p.shape) for name, p in model.state_dict().items() if not _rebuilt(name)}
    found = {name: tuple(p.shape) for name, p in weights.items() if not _rebuilt(name)}
    missing, extra = sorted(set(own) - set(found)), sorted(set(found) - set(own))
    shapes = [f"{n} is {found[n]}, not {own[n]}" for n in sorted(set(own) & set(found)) if own[n] != found[n]]
    if missing or extra or shapes:
        raise ValueError(
            f"'{path / WEIGHTS}' does not fit {CONFIG}: missing {missing[:3]}, unexpected {extra[:3]}, "
            f"wrong shape {shapes[:3]}"
        )
    model.load_state_dict({n: weights[n] for n in found}, strict=False)


def _settings(cfg: HookedTransformerConfig) -> dict[str, Any]:
    """The settings that differ from the defaults, bar those of a run."""
    kept = [field for field in fields(HookedTransformerConfig) if field.name not in RUN_TIME]
    return {f.name: getattr(cfg, f.name) for f in kept if getattr(cfg, f.name) != f.default}


def _rebuilt(name: str) -> bool:
    return name.rsplit(".", 1)[-1] in REBUILT


def _existing(path: Path, name: str) -> Path:
    if not (path / name).is_file():
        raise FileNotFoundError(f"no {name} in '{path}'; a model folder holds {CONFIG} and {WEIGHTS}")
    return path / name
