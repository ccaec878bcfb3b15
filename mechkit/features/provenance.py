"""What made an index: hashes of the model, the SAEs and the corpus, the settings and the version of the code.

An index goes on only where all of these are the same; `refuse` says which are not.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mechkit.core.weights import weights_hash


def sae_hash(sae) -> str:
    """sha256 of an SAE's weights and of the settings that decide what it computes."""
    settings = sae.cfg.to_dict()
    settings = {key: settings[key] for key in sorted(settings) if key not in ("device", "metadata")}
    settings["hook_name"] = sae.cfg.metadata.hook_name
    return hashlib.sha256((json.dumps(settings, default=str) + weights_hash(sae)).encode()).hexdigest()


def made_by(model, saes: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """All that an index depends on but its corpus. JSON-able."""
    from mechkit import __version__
    from mechkit.zoo.folder import origin_of, processing_of

    origin = origin_of(model)
    return {
        "mechkit": __version__,
        "model": {
            "name": origin.name if origin else str(model.cfg.model_name),
            "sha256": weights_hash(model),
            "processing": processing_of(model),
            "dtype": str(model.cfg.dtype).removeprefix("torch."),
        },
        "saes": {
            name: {"sha256": sae_hash(sae), "hook": sae.cfg.metadata.hook_name, "n_features": sae.cfg.d_sae}
            for name, sae in saes.items()
        },
        "settings": dict(settings),
    }


def refuse(folder: Path, kept: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Raise ValueError, naming what differs, where an index was made by something else than is at hand."""
    differences = list(_differences(json.loads(json.dumps(kept)), json.loads(json.dumps(now))))
    if differences:
        raise ValueError(
            f"'{folder}' was made by something else: {'; '.join(differences)}; "
            "give what it was made by, or another folder"
        )


def _differences(kept: Any, now: Any, path: str = ""):
    if isinstance(kept, dict) and isinstance(now, dict):
        for key in sorted({*kept, *now}):
            yield from _differences(kept.get(key), now.get(key), f"{path}.{key}" if path else key)
    elif kept != now:
        yield f"{path} was {_short(kept)}, is {_short(now)}"


def _short(value: Any) -> str:
    return value[:12] if isinstance(value, str) and len(value) == 64 else str(value)
