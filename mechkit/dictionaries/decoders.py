"""The directions that dictionaries write, read from SAELens's files without the rest of the dictionary.

Any architecture SAELens saves will do, since only `W_dec` and the hook are read, and SAELens is not imported.

>>> first, second = decoders_at(model.mechkit_origin.folder / "transcoders", model)
>>> first.hook_name, first.W_dec.shape
('blocks.0.hook_mlp_out', torch.Size([448, 128]))
"""

import json
from dataclasses import dataclass
from pathlib import Path

from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from torch import Tensor

from mechkit.dictionaries.loading import CONFIG, WEIGHTS, check_origin, existing


@dataclass(frozen=True, eq=False)
class Decoder:
    """What the features of one dictionary write."""

    name: str
    """The dictionary's own name, else that of its folder."""
    hook_name: str
    """The hook that it rebuilds."""
    W_dec: Float[Tensor, "feature d_model"]
    """The direction that each feature writes."""


def decoders_at(path: str | Path, model) -> list[Decoder]:
    """The decoder in the folder `path`, or those in the folders in it sorted by name, on the model's device.

    Raises FileNotFoundError where there is none, ValueError for damaged files and for dictionaries of another model:
    other hooks, weight processing or weights.
    """
    path = Path(path)
    homes = [path] if (path / CONFIG).is_file() else sorted(file.parent for file in path.glob(f"*/{CONFIG}"))
    if not homes:
        raise FileNotFoundError(
            f"no dictionary in '{path}': neither it nor a folder in it holds {CONFIG} and {WEIGHTS}, as SAELens writes"
        )
    return [_decoder(home, model) for home in homes]


def _decoder(home: Path, model) -> Decoder:
    file = home / CONFIG
    try:
        cfg = json.loads(file.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"'{file}' is damaged: {error}; copy it again") from error
    known = {**cfg, **(cfg.get("metadata") or {})} if isinstance(cfg, dict) else {}
    hook = known.get("hook_name_out") or known.get("hook_name")
    if not isinstance(hook, str) or hook not in model.hook_dict:
        raise ValueError(f"'{file}' has hook_name {hook!r}, which is no hook of this model")
    check_origin(home, known, model)
    name = known.get("name") or known.get("sae_lens_id") or f"{home.parent.name}/{home.name}"
    return Decoder(str(name), hook, _W_dec(existing(home, WEIGHTS)).to(model.cfg.device))


def _W_dec(file: Path) -> Float[Tensor, "feature d_model"]:
    try:
        with safe_open(file, "pt") as tensors:
            if "W_dec" not in tensors.keys():  # noqa: SIM118 (no mapping)
                raise ValueError(f"'{file}' holds no W_dec but {', '.join(tensors.keys())}")
            found = tensors.get_tensor("W_dec")
    except SafetensorError as error:
        raise ValueError(f"'{file}' is damaged: {error}; copy it again") from error
    if found.ndim != 2:
        raise ValueError(f"'{file}' has a W_dec of shape {list(found.shape)}; it must be [feature, d_model]")
    return found
