"""SAEs from disk, through SAELens and checked against the model they are to be used on.

Unlike transcoders (`loading`), an SAE stays the SAELens object that it is: all its kinds are read, and SAELens takes
seconds to import.

>>> saes = saes_for(model)                                     # those of a bundled model, by hook
>>> sae = load_sae("saes/blocks.2.hook_resid_post", model)
>>> sae.encode(cache[sae.cfg.metadata.hook_name]).shape
torch.Size([50, 12, 1024])
"""

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from mechkit.dictionaries.loading import CONFIG, WEIGHTS, check_origin, existing


def saes_for(model) -> dict[str, Any]:
    """The SAEs that come with a zoo model or lie in its folder, by the hook they read; empty where there are none.

    Raises ValueError where they were trained on other weights than the model's.
    """
    from mechkit.zoo.folder import origin_of

    origin = origin_of(model)
    folder = None if origin is None or origin.folder is None else origin.folder / "saes"
    found = [] if folder is None else sorted(path.parent for path in folder.glob(f"*/{CONFIG}"))
    return {sae.cfg.metadata.hook_name: sae for sae in (load_sae(path, model) for path in found)}


def load_sae(path: str | Path, model) -> Any:
    """The SAELens SAE in a folder, on the model's device and in its dtype.

    Cost: a forward pass of one token, to see how wide its hook is. Raises FileNotFoundError for a missing file,
    ValueError for a damaged one and for an SAE of another model: other hook, width, weight processing or weights.
    """
    path = Path(path)
    for name in (CONFIG, WEIGHTS):
        existing(path, name)
    sae = _read(path, str(model.cfg.device), str(model.cfg.dtype).removeprefix("torch."))
    metadata = sae.cfg.metadata.to_dict()
    hook = metadata.get("hook_name")
    if not isinstance(hook, str) or hook not in model.hook_dict:
        raise ValueError(f"'{path}' has hook_name {hook!r}, which is no hook of this model")
    check_origin(path, metadata, model)
    width = hook_width(model, hook)
    if sae.cfg.d_in != width:
        raise ValueError(f"'{path}' has d_in {sae.cfg.d_in}; {hook} of this model has {width}")
    return sae


@torch.no_grad()
def hook_width(model, hook: str) -> int:
    """How many numbers a position has at a hook, those of all heads together. Cost: a forward pass of one token."""
    token = torch.zeros(1, 1, dtype=torch.long, device=model.cfg.device)
    _, cache = model.run_with_cache(token, names_filter=lambda name: name == hook)
    return cache[hook][0, 0].numel()


def _read(path: Path, device: str, dtype: str):
    from sae_lens import SAE

    try:
        return SAE.load_from_disk(path, device=device, dtype=dtype).eval()
    except (SafetensorError, RuntimeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"'{path}' is no SAE that SAELens reads ({error}); copy it again") from error
