"""The loss of a language model, from a forward pass without hooks: half the time of the hooked one while training.

For models as GPT-2 is built: learned positions, LayerNorm, attention and then an MLP. A test holds the logits equal to
the hooked model's own.

    text_loss(model, tokens, tied=True)          # mean over all tokens but the first, in nats
"""

import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, cat

ACTIVATIONS = {"relu": F.relu, "gelu": F.gelu}
"""The activations that `plain_logits` knows, by TransformerLens's names."""


def text_loss(model, tokens: Int[Tensor, "row pos"], *, tied: bool) -> Float[Tensor, ""]:
    """Mean cross-entropy of every token of unpadded rows but the first, in nats."""
    logits = plain_logits(model, tokens, tied=tied)[:, :-1]
    return F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())


def plain_logits(model, tokens: Int[Tensor, "row pos"], *, tied: bool) -> Float[Tensor, "row pos d_vocab"]:
    """Logits at every position, through the embedding's transpose where `tied`; hooks do not run.

    Raises ValueError for a model of another build.
    """
    _require_plain(model.cfg)
    x = F.embedding(tokens, model.embed.W_E) + model.pos_embed.W_pos[: tokens.shape[1]]
    for block in model.blocks:
        x = x + _attention(block.attn, _norm(block.ln1, x), model.cfg)
        x = x + _mlp(block.mlp, _norm(block.ln2, x), ACTIVATIONS[model.cfg.act_fn])
    x = _norm(model.ln_final, x)
    return F.linear(x, model.embed.W_E) if tied else F.linear(x, model.unembed.W_U.T, model.unembed.b_U)


def _attention(attn, x: Float[Tensor, "row pos d_model"], cfg) -> Float[Tensor, "row pos d_model"]:
    weight = cat([W.permute(0, 2, 1).flatten(0, 1) for W in (attn.W_Q, attn.W_K, attn.W_V)])
    bias = cat([b.flatten() for b in (attn.b_Q, attn.b_K, attn.b_V)])
    n_rows, n_pos, _ = x.shape
    q, k, v = F.linear(x, weight, bias).view(n_rows, n_pos, 3, cfg.n_heads, cfg.d_head).permute(2, 0, 3, 1, 4)
    z = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2)
    return F.linear(z, attn.W_O.flatten(0, 1).T, attn.b_O)


def _mlp(mlp, x: Float[Tensor, "row pos d_model"], activation) -> Float[Tensor, "row pos d_model"]:
    return F.linear(activation(F.linear(x, mlp.W_in.T, mlp.b_in)), mlp.W_out.T, mlp.b_out)


def _norm(norm, x: Float[Tensor, "row pos d_model"]) -> Float[Tensor, "row pos d_model"]:
    return F.layer_norm(x, x.shape[-1:], norm.w, norm.b, norm.eps)


def _require_plain(cfg) -> None:
    wanted = {
        "normalization_type": ("LN",),
        "positional_embedding_type": ("standard",),
        "act_fn": tuple(ACTIVATIONS),
        "attention_dir": ("causal",),
        "attn_only": (False,),
        "parallel_attn_mlp": (False,),
        "gated_mlp": (False,),
        "n_key_value_heads": (None,),
    }
    for name, known in wanted.items():
        if getattr(cfg, name) not in known:
            raise ValueError(
                f"the model's {name} is {getattr(cfg, name)!r}; its text loss is known for {', '.join(map(str, known))}"
            )
