"""SAEs from disk or from SAELens's releases, through SAELens and checked against the model they are to be used on.

Unlike transcoders (`loading`), an SAE stays the SAELens object that it is: all its kinds are read, and SAELens takes
seconds to import.

    saes = saes_for(model)                                     # those of a bundled model, by hook
    sae = load_sae("saes/blocks.2.hook_resid_post", model)
    sae.encode(cache[sae.cfg.metadata.hook_name]).shape  # torch.Size([50, 12, 2048])
"""

import warnings
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from safetensors import SafetensorError
from torch import Tensor

from mechkit.dictionaries.loading import CONFIG, WEIGHTS, check_origin, existing

ROWS = 64
"""Rows of tokens per forward pass."""


def saes_for(model) -> dict[str, Any]:
    """The SAEs that come with a zoo model or lie in its folder, by the hook they read; empty where there are none.

    Raises ValueError where they were trained on other weights than the model's.
    """
    from mechkit.zoo.folder import origin_of

    origin = origin_of(model)
    folder = None if origin is None or origin.folder is None else origin.folder / "saes"
    found = [] if folder is None else sorted(path.parent for path in folder.glob(f"*/{CONFIG}"))
    return {sae.cfg.metadata.hook_name: sae for sae in (load_sae(path, model) for path in found)}


def load_sae(
    release_or_path: str | Path,
    model=None,
    sae_id: str | None = None,
    *,
    text: Any = None,
    device: str | None = None,
    dtype: torch.dtype | None = None,
) -> Any:
    """The SAELens SAE (or transcoder) in a folder, or `sae_id` of one of SAELens's releases, checked against `model`.

    `device` and `dtype` are the model's unless given; without a model, the CPU and the SAE's own. With `text` (ids
    `[row, pos]`, or text that the model's tokenizer reads) the share of variance it misses is measured and kept as
    `sae.mechkit_error`; a UserWarning says where that is more than a tenth above the SAE's own figure (`1 -
    explained_variance` of its metadata), or above 1 where it has none.

    Cost: a forward pass of one token, to see how wide its hooks are, and one of `text`. Raises FileNotFoundError for a
    missing file, OSError for a release that cannot be reached, ValueError for a damaged SAE, one whose activations'
    scale is not in its file, and one of another model: other hook, width, weight processing, weights, or no BOS.
    """
    if model is not None:
        device, dtype = device or str(model.cfg.device), dtype or model.cfg.dtype
    wanted = None if dtype is None else str(dtype).removeprefix("torch.")
    if sae_id is None:
        for name in (CONFIG, WEIGHTS):
            existing(Path(release_or_path), name)
        sae = read_sae(Path(release_or_path), device or "cpu", wanted)
    else:
        sae = _fetched(str(release_or_path), sae_id, device or "cpu", wanted)
    called = Path(release_or_path) if sae_id is None else Path(str(release_or_path)) / sae_id
    _require_scale(called, sae)
    if model is not None:
        _require_fit(called, sae, model)
    if text is not None:
        _check_error(called, sae, model, text)
    return sae


def _require_scale(path: Path, sae) -> None:
    """Raise ValueError for an SAE that reads scaled activations and does not say by how much."""
    if sae.cfg.normalize_activations in ("expected_average_only_in", "covariance_whitening"):
        raise ValueError(
            f"'{path}' reads activations scaled by {sae.cfg.normalize_activations}, and its file does not say by how "
            "much; fold the scale in with SAELens (fold_activation_norm_scaling_factor) and save it again"
        )


def _require_fit(path: Path, sae, model) -> None:
    metadata = sae.cfg.metadata.to_dict()
    hooks = {"hook_name": sae.cfg.d_in}
    if metadata.get("hook_name_out"):
        hooks["hook_name_out"] = getattr(sae.cfg, "d_out", sae.cfg.d_in)
    for key in hooks:
        hook = metadata.get(key)
        if not isinstance(hook, str) or hook not in model.hook_dict:
            raise ValueError(f"'{path}' has {key} {hook!r}, which is no hook of this model")
    check_origin(path, metadata, model)
    _check_processing(path, metadata, model)
    for key, expected in hooks.items():
        width = hook_width(model, metadata[key], metadata.get("hook_head_index"))
        if expected != width:
            kind = "d_in" if key == "hook_name" else "d_out"
            raise ValueError(f"'{path}' has {kind} {expected}; {metadata[key]} of this model has {width}")
    if metadata.get("prepend_bos") and model.tokenizer is not None and model.tokenizer.bos_token_id is None:
        raise ValueError(f"'{path}' was trained on rows that begin with a BOS; the model's tokenizer has none")


def _check_processing(path: Path, metadata: dict[str, Any], model) -> None:
    """Raise ValueError where SAELens's metadata ask for centred writing weights and they are not, or the reverse."""
    from mechkit.zoo.folder import processing_of

    centred = (metadata.get("model_from_pretrained_kwargs") or {}).get("center_writing_weights")
    if centred is None or str(model.cfg.normalization_type).startswith("RMS"):
        return
    wanted, has = "folded" if centred else "none", processing_of(model)
    if wanted != has:
        raise ValueError(
            f"'{path}' was trained on a model with center_writing_weights={centred}, this one has processing {has!r}; "
            f"load the model with processing={wanted!r}"
        )


def _check_error(path: Path, sae, model, text: Any) -> None:
    if model is None:
        raise ValueError("the error on text is measured with a model; give model= as well")
    sae.mechkit_error = error = unexplained(model, sae, _rows(model, sae, text))
    own = sae.cfg.metadata.explained_variance
    limit = 1.0 if own is None else 1.1 * (1 - own)
    if error > limit:
        than = "rebuilds worse than the mean" if own is None else f"its own figure is {1 - own:.3f}"
        warnings.warn(
            f"'{path}' misses {error:.3f} of the variance on this text; {than}. Was it trained on this model, "
            "with these weights and BOS?",
            stacklevel=3,
        )


@torch.no_grad()
def unexplained(model, sae, tokens: Int[Tensor, "row pos"]) -> float:
    """Share of the variance about the mean that an SAE (or transcoder) misses on rows of tokens; 0 is perfect.

    Cost: one forward pass of the tokens.
    """
    hook, head = sae.cfg.metadata.hook_name, sae.cfg.metadata.hook_head_index
    out = sae.cfg.metadata.hook_name_out or hook
    missed, n, total, squares = 0.0, 0, torch.zeros(()).double(), 0.0
    for part in tokens.to(model.cfg.device).split(ROWS):
        _, cache = model.run_with_cache(part, names_filter=lambda name: name in (hook, out))
        x, y = (cache[name] if head is None else cache[name][:, :, head] for name in (hook, out))
        x = x if x.ndim == 3 or sae.cfg.reshape_activations == "hook_z" else x.flatten(2)
        y = y.flatten(2).double()
        missed += float((sae(x).flatten(2).double() - y).square().sum())
        n, total, squares = n + y.shape[0] * y.shape[1], total + y.sum((0, 1)).cpu(), squares + float(y.square().sum())
    return missed / (squares - float(total.square().sum()) / n)


def _rows(model, sae, text: Any) -> Int[Tensor, "row pos"]:
    """Token ids as they are; text in rows as long as the SAE's, each with a BOS where it was trained with one."""
    if not isinstance(text, str):
        return torch.as_tensor(text)
    if model.tokenizer is None or not text.strip():
        raise ValueError("the text is empty, or the model has no tokenizer to read it with; give token ids instead")
    ids = model.tokenizer(text, add_special_tokens=False)["input_ids"]
    first = [model.tokenizer.bos_token_id] if sae.cfg.metadata.prepend_bos else []
    width = min(sae.cfg.metadata.context_size or model.cfg.n_ctx, model.cfg.n_ctx) - len(first)
    width = min(width, len(ids))
    rows = [ids[i : i + width] for i in range(0, len(ids) - width + 1, width)]
    return torch.tensor([[*first, *row] for row in rows])


@torch.no_grad()
def hook_width(model, hook: str, head: int | None = None) -> int:
    """How many numbers a position has at a hook, those of all heads together, or those of one.

    Cost: a forward pass of one token.
    """
    token = torch.zeros(1, 1, dtype=torch.long, device=model.cfg.device)
    _, cache = model.run_with_cache(token, names_filter=lambda name: name == hook)
    return cache[hook][0, 0].numel() if head is None else cache[hook][0, 0, head].numel()


def read_sae(path: Path, device: str, dtype: str | None = None) -> Any:
    """The SAE in a folder, unchecked. Raises ValueError where SAELens cannot read it."""
    from sae_lens import SAE

    try:
        with _drawing_aside(device):
            return SAE.load_from_disk(path, device=device, dtype=dtype).eval()
    except (SafetensorError, RuntimeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"'{path}' is no SAE that SAELens reads ({error}); copy it again") from error


def _fetched(release: str, sae_id: str, device: str, dtype: str | None):
    """An SAE of a release, by SAELens from the Hugging Face Hub or its local cache."""
    from sae_lens import SAE

    try:
        with _drawing_aside(device):
            return SAE.from_pretrained(release, sae_id, device=device, dtype=dtype or "float32").eval()
    except (ValueError, KeyError) as error:
        raise ValueError(f"SAELens has no SAE {sae_id!r} in {release!r} that it reads ({error})") from error
    except Exception as error:  # the Hub's client and its HTTP library each have their own
        raise OSError(
            f"cannot fetch SAE {sae_id!r} of {release!r} from the Hugging Face Hub ({_first_line(error)}); "
            "with no network give the folder that it was saved in"
        ) from error


def _drawing_aside(device: str):
    """SAELens draws weights before it reads them; the generators come out of it as they went in."""
    return torch.random.fork_rng([torch.device(device)] if device.startswith("cuda") else [])


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]
