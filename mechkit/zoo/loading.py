"""`load`: a model by its zoo name, its folder or its Hub name, always a plain `HookedTransformer`.

>>> model = load("addition")
>>> model.to_str_tokens("35+59=")
['35', '+', '59', '=']
"""

from difflib import get_close_matches
from pathlib import Path

import torch

from mechkit.zoo.folder import CONFIG, WEIGHTS, Origin, fold, load_folder, processing_of, remember

PROCESSING = ("none", "folded")
"""Weights as trained; or norms folded in, writing weights and unembedding centred, value biases folded."""


def zoo_names() -> list[str]:
    """The names of the models that come with the package."""
    return sorted(file.parent.name for file in Path(__file__).parent.glob(f"*/{CONFIG}"))


def load(
    name_or_path: str | Path,
    processing: str | None = None,
    device: str | None = None,
    dtype: torch.dtype | None = None,
):
    """The `HookedTransformer` of that name: from the zoo, else a local folder, else the Hugging Face Hub.

    `processing` is "none" (weights as trained), "folded", or None for as stored (the Hub: "folded", which is
    TransformerLens's default). `device` defaults to TransformerLens's choice, `dtype` to that of the weights.
    `processing_of` tells what was done; a model of the zoo or a folder has its `Origin` as `model.mechkit_origin`.

    Raises ValueError for a name nobody knows, a device that is not there, a damaged folder or a processing that
    cannot be had, FileNotFoundError for a folder without weights, OSError where the Hub cannot be reached.
    """
    if processing not in (None, *PROCESSING):
        raise ValueError(f"no processing {processing!r}; it is one of {', '.join(PROCESSING)}, or None as stored")
    _require_device(device)
    name, path = str(name_or_path), Path(name_or_path).expanduser()
    if name in zoo_names():
        return _processed(load_folder(_home(name), name=name, device=device, dtype=dtype), processing)
    if path.is_dir():
        return _processed(load_folder(path, device=device, dtype=dtype), processing)
    return _from_hub(name, processing or "folded", device, dtype)


def _home(name: str) -> Path:
    return Path(__file__).parent / name


def _processed(model, processing: str | None):
    """The same model in the processing asked for, folded here if need be."""
    origin = model.mechkit_origin
    if processing in (None, origin.processing):
        return model
    if processing == "none":
        raise ValueError(
            f"'{origin.name}' is stored folded and the weights as trained are not kept; "
            "leave processing out, or train it again"
        )
    fold(model)
    remember(model, Origin(origin.name, "folded", origin.sha256, origin.folder))
    return model


def _require_device(device: str | None) -> None:
    """Raise ValueError where tensors cannot be made on `device`."""
    import torch

    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, ValueError) as error:
        raise ValueError(f"no device {device!r} here ({str(error).splitlines()[0]}); use cpu") from error


def _from_hub(name: str, processing: str, device: str | None, dtype: torch.dtype | None):
    from transformer_lens import HookedTransformer

    _within_reach(_official_name(name), name)
    build = HookedTransformer.from_pretrained if processing == "folded" else _no_processing()
    try:
        model = build(name, device=device, dtype=dtype or torch.float32)  # pyright: ignore[reportArgumentType]
    except Exception as error:  # requests, the Hub client and TransformerLens each have their own
        raise _out_of_reach(name, error) from error
    remember(model, Origin(name, processing))
    return model.eval()


def _no_processing():
    from transformer_lens import HookedTransformer

    return HookedTransformer.from_pretrained_no_processing


def _official_name(name: str) -> str:
    """The Hub's name of a model; ValueError at once, with no network, where TransformerLens has no such model."""
    from transformer_lens.loading_from_pretrained import make_model_alias_map

    known = make_model_alias_map()
    if name.lower() in known:
        return known[name.lower()]
    close = get_close_matches(name.lower(), [*known, *zoo_names()], n=3)
    hint = f"; did you mean {' or '.join(close)}" if close else ""
    raise ValueError(
        f"no model '{name}': not in the zoo ({', '.join(zoo_names())}), not a folder with {CONFIG} and {WEIGHTS}, "
        f"and not a Hub name TransformerLens knows{hint}"
    )


def _within_reach(official: str, name: str) -> None:
    """Raises OSError where a model is neither in the Hub's local cache nor to be had from the Hub.

    Asked first because the Hub client tries again for half a minute before it gives up.
    """
    from huggingface_hub import constants, try_to_load_from_cache
    from huggingface_hub.utils import get_session

    if isinstance(try_to_load_from_cache(official, "config.json"), str):
        return
    try:
        get_session().head(constants.ENDPOINT, timeout=5)
    except Exception as error:  # each HTTP library has its own
        raise _out_of_reach(name, error) from error


def _out_of_reach(name: str, error: Exception) -> OSError:
    return OSError(
        f"cannot load '{name}' from the Hugging Face Hub ({_first_line(error)}); "
        f"with no network use the zoo ({', '.join(zoo_names())}) or a local model folder"
    )


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]


__all__ = ["PROCESSING", "load", "processing_of", "zoo_names"]
