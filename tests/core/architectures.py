"""Model variants on which every engine of the sweep must give the loop's numbers: tiny, random, three layers.

>>> make(build, "ALiBi").cfg.positional_embedding_type        # `build` is conftest's fixture
'alibi'
"""

import torch
from torch import nn

ROTARY = {"positional_embedding_type": "rotary", "rotary_dim": 8}
GROUPED = {"n_heads": 4, "d_head": 4, "n_key_value_heads": 2}
LLAMA = ROTARY | GROUPED | {"rotary_dim": 4, "gated_mlp": True, "normalization_type": "RMS", "act_fn": "silu"}
GEMMA = LLAMA | {"use_normalization_before_and_after": True, "attn_scores_soft_cap": 2.0, "output_logits_soft_cap": 3.0}

SETTINGS = {
    "LayerNorm": {"eps": 0.03},
    "RMSNorm": {"normalization_type": "RMS", "act_fn": "gelu_new"},
    "no norm": {"normalization_type": None},
    "RMS final norm": {"final_rms": True},
    "folded LayerNorm": {"act_fn": "gelu"},
    "folded RMSNorm": {"normalization_type": "RMS"},
    "rotary, adjacent pairs": ROTARY | {"rotary_adjacent_pairs": True},
    "rotary, halves": ROTARY,
    "rotary, some dimensions": ROTARY | {"rotary_dim": 4},
    "rotary, stretched with the prompt": ROTARY | {"use_dynamic_ntk_rope": True, "train_seq_length": 3},
    "queries scaled by log n": {"use_logn_attn": True, "train_seq_length": 3},
    "shortformer": {"positional_embedding_type": "shortformer"},
    "ALiBi": {"positional_embedding_type": "alibi"},
    "grouped queries": GROUPED,
    "grouped queries, ungrouped": GROUPED | {"ungroup_grouped_query_attention": True},
    "Llama": LLAMA,
    "folded Llama": LLAMA,
    "parallel": {"parallel_attn_mlp": True},
    "folded parallel": ROTARY | {"parallel_attn_mlp": True},
    "gated MLP": {"gated_mlp": True},
    "attention only": {"attn_only": True},
    "attention only, no norm": {"attn_only": True, "normalization_type": None},
    "bidirectional": {"attention_dir": "bidirectional"},
    "another output vocabulary": {"d_vocab_out": 17},
    "local attention": {"use_local_attn": True, "attn_types": ["local", "global", "local"], "window_size": 2},
    "local attention with its own rotation": ROTARY
    | {"use_local_attn": True, "attn_types": ["global", "local", "local"], "window_size": 3, "rotary_base_local": 50},
    "soft-capped scores": {"attn_scores_soft_cap": 0.3},
    "soft-capped logits": {"output_logits_soft_cap": 1.5},
    "scores divided by the layer": {"scale_attn_by_inverse_layer_idx": True},
    "scores as they are": {"use_attn_scale": False},
    "clipped q, k, v": {"clip_qkv": 0.5},
    "Gemma 2": GEMMA,
    "OLMo 2": {"original_architecture": "Olmo2ForCausalLM", "normalization_type": "RMS"},
    "QK-norm": LLAMA | {"use_qk_norm": True},
    "attention sinks": {"use_attention_sinks": True},
    "mixture of experts": {"num_experts": 3, "experts_per_token": 2, "gated_mlp": True, "normalization_type": "RMS"},
    "SoLU with its norm": {"act_fn": "solu_ln"},
    "one head": {"n_heads": 1, "d_head": 16},
    "one layer": {"n_layers": 1},
    "results computed": {"use_attn_result": True},
    "split query, key and value inputs": {"use_split_qkv_input": True, "use_hook_mlp_in": True},
    "one attention input": {"use_attn_in": True},
    "float64": {"dtype": torch.float64},
    "float64 Llama": LLAMA | {"dtype": torch.float64},
    "float64 Gemma 2": GEMMA | {"dtype": torch.float64},
    "hooks that mask padding": {},
    "a hook that changes patterns": {},
    "a hook that adds in place": {},
    "a hook that sees the whole batch": {},
    "hooks on modules": {},
    "a hook on the model": {},
    "a replaced MLP": {},
    "a replaced activation function": {"act_fn": "gelu"},
    "a replaced forward": {},
    "a replaced unembedding": {},
    "a class of its own": {},
}  # fmt: skip
"""What each variant changes of the plain configuration."""

SEVERAL_LENGTHS = (
    "LayerNorm", "no norm", "folded RMSNorm", "rotary, adjacent pairs", "rotary, some dimensions",
    "rotary, stretched with the prompt", "queries scaled by log n", "shortformer", "ALiBi", "grouped queries", "Llama",
    "folded parallel", "attention only", "bidirectional", "another output vocabulary", "local attention",
    "local attention with its own rotation", "soft-capped scores", "Gemma 2", "OLMo 2", "attention sinks",
    "mixture of experts", "one layer", "split query, key and value inputs", "float64 Gemma 2",
    "a hook that changes patterns", "a hook that sees the whole batch", "hooks on modules", "a hook on the model",
    "a replaced forward",
)  # fmt: skip
"""Variants that treat positions, or a whole prompt, in a way of their own: tested on ragged prompts too."""

PADDING = torch.tensor([[False] * 5, [True, True, False, False, False]])
"""What the hooks that mask padding hide, `[prompt, pos]`."""


def make(build, name: str, **changes):
    """The variant `name`, built by conftest's `build`; `changes` go to its configuration."""
    model = build(**{"n_layers": 3} | SETTINGS[name] | changes)
    PREPARED.get(name, lambda model: None)(model)
    return model


def at_every_layer(model, short: str, function) -> None:
    for layer in range(model.cfg.n_layers):
        model.add_hook(f"blocks.{layer}.{short}", function, is_permanent=True)


def fold(model) -> None:
    """The norms' weights into the maps after them, as `from_pretrained` does."""
    centred = model.cfg.normalization_type == "LN"
    model.process_weights_(fold_ln=True, center_writing_weights=centred, center_unembed=centred)
    assert model.cfg.normalization_type in ("LNPre", "RMSPre")


def mask_padding(model) -> None:
    at_every_layer(
        model, "attn.hook_attn_scores", lambda x, hook: x.masked_fill(PADDING[:, None, None, : x.shape[-1]], -torch.inf)
    )


def change_patterns(model) -> None:
    """Half of every head's attention to every token, later ones too."""
    at_every_layer(model, "attn.hook_pattern", lambda x, hook: 0.5 * x + 0.5 / x.shape[-1])


def add_in_place(model) -> None:
    at_every_layer(model, "hook_attn_out", lambda x, hook: x.add_(0.3))


def subtract_batch_mean(model) -> None:
    model.add_hook("blocks.1.hook_resid_pre", lambda x, hook: x - 0.5 * x.mean(0, keepdim=True), is_permanent=True)


def hook_modules(model) -> None:
    """Hooks that torch holds, on modules that are no hook points; one mixes positions."""
    block = model.blocks[1]
    block.mlp.register_forward_hook(lambda module, inputs, out: 1.5 * out + 0.5 * out.mean(1, keepdim=True))
    block.attn.register_forward_hook(lambda module, inputs, out: out.roll(1, 1))
    model.ln_final.register_forward_pre_hook(lambda module, inputs: (0.5 * inputs[0] + 0.2,))


def hook_model(model) -> None:
    model.register_forward_hook(lambda module, inputs, out: 2.0 * out - out.mean(1, keepdim=True))


class Doubled(nn.Module):
    """Twice what another module gives."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return 2.0 * self.inner(x)


def replace_mlp(model) -> None:
    model.blocks[1].mlp = Doubled(model.blocks[1].mlp)
    model.setup()


def replace_activation(model) -> None:
    model.blocks[1].mlp.act_fn = torch.sigmoid


def replace_forward(model) -> None:
    attn = model.blocks[1].attn
    plain = attn.forward
    attn.forward = lambda *inputs, **options: plain(*inputs, **options).roll(1, 1)


def replace_unembedding(model) -> None:
    model.unembed = Doubled(model.unembed)
    model.setup()


def own_class(model) -> None:
    """A subclass whose logits are other than those of its parent."""
    plain = type(model)
    model.__class__ = type("Own", (plain,), {"forward": lambda self, *args, **options: 2 * plain.forward(self, *args)})


PREPARED = {
    "folded LayerNorm": fold, "folded RMSNorm": fold, "folded Llama": fold, "folded parallel": fold,
    "hooks that mask padding": mask_padding, "a hook that changes patterns": change_patterns,
    "a hook that adds in place": add_in_place, "a hook that sees the whole batch": subtract_batch_mean,
    "hooks on modules": hook_modules, "a hook on the model": hook_model, "a replaced MLP": replace_mlp,
    "a replaced activation function": replace_activation, "a replaced forward": replace_forward,
    "a replaced unembedding": replace_unembedding, "a class of its own": own_class,
}  # fmt: skip
"""What is done to a variant after it is built."""
