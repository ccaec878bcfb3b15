"""What the features of an SAE write: directions of the residual stream, and the tokens these promote."""

import re
from collections.abc import Iterable

import torch
from jaxtyping import Float, Int
from torch import Tensor


@torch.no_grad()
def decoder_rows(sae, features: Iterable[int]) -> Float[Tensor, "feature d_out"]:
    """What each feature adds to an SAE's output for an activation of 1, before any rescaling by the input's size."""
    rows = sae.W_dec[list(features)]
    rescaled = getattr(sae.cfg, "rescale_acts_by_decoder_norm", False)
    return rows / rows.norm(dim=1, keepdim=True) if rescaled else rows


@torch.no_grad()
def written_directions(model, sae) -> Float[Tensor, "feature d_model"] | None:
    """What each feature writes to the residual stream for an activation of 1; None where its hook does not write there.

    Features of heads' outputs (`z`) go through W_O, those of neurons (`mlp.hook_post`) through W_out.
    """
    metadata, W_dec = sae.cfg.metadata, sae.W_dec.float()
    hook = str(metadata.hook_name_out or metadata.hook_name)
    layer = re.match(r"blocks\.(\d+)\.", hook)
    if hook.endswith("attn.hook_z") and layer:
        W_O = model.blocks[int(layer[1])].attn.W_O.float()
        head = metadata.hook_head_index
        return W_dec @ (W_O[head] if head is not None else W_O.reshape(-1, W_O.shape[-1]))
    if hook.endswith("mlp.hook_post") and layer:
        return W_dec @ model.blocks[int(layer[1])].mlp.W_out.float()
    stream = re.search(r"hook_(resid_\w+|attn_out|mlp_out|embed|pos_embed)$", hook)
    return W_dec if stream and W_dec.shape[1] == model.cfg.d_model else None


@torch.no_grad()
def unembedding(model) -> Float[Tensor, "token d_model"]:
    """What each token's logit reads off the residual stream at the end, for a norm of scale 1, from the mean logit.

    The weights of the last norm are folded in, and its centring where it centres.
    """
    read = model.W_U.float()
    gain = getattr(model.ln_final, "w", None) if hasattr(model, "ln_final") else None
    read = read if gain is None else gain.float()[:, None] * read
    if str(model.cfg.normalization_type).startswith("LN"):
        read = read - read.mean(0)
    return (read - read.mean(1, keepdim=True)).T.contiguous()


@torch.no_grad()
def extremes(
    written: Float[Tensor, "feature d_model"], unembed: Float[Tensor, "token d_model"], n: int
) -> tuple[Int[Tensor, "feature n"], Float[Tensor, "feature n"], Int[Tensor, "feature n"], Float[Tensor, "feature n"]]:
    """The tokens that each feature promotes most and those it suppresses most, each with its logit."""
    n, up, down = min(n, len(unembed)), [], []
    for part in written.split(256):
        logits = part @ unembed.T
        up.append(logits.topk(n))
        down.append(logits.topk(n, largest=False))
    return (
        torch.cat([one.indices for one in up]),
        torch.cat([one.values for one in up]),
        torch.cat([one.indices for one in down]),
        torch.cat([one.values for one in down]),
    )
