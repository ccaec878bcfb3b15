"""The base run: the pass that all runs of a sweep share, kept where they will need it.

While it runs, every edit is tried on it (`Scout`), which tells the runs that change nothing and the position from which
each of the others differs.
"""

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from mechkit.core.engine.agenda import ATTENTION, HIDDEN, TOP, Agenda, Scout, Stage
from mechkit.core.engine.fused import Fused, Layer
from mechkit.core.engine.results import HeadOutputs
from mechkit.core.prompts import Prompts


class BaseRun:
    """Values of the base run by stage, `[prompt, pos, ...]` (patterns `[prompt, head, dest, src]`)."""

    def __init__(self, fused: Fused, prompts: Prompts, agenda: Agenda) -> None:
        self.fused, self.prompts, self.agenda = fused, prompts, agenda
        self.n_prompts, self.n_pos = prompts.tokens.shape
        self.scout = Scout(agenda, self.n_pos)
        self.raw: dict[Stage, Tensor] = {}
        """Before the edits that all runs share."""
        self.value: dict[Stage, Tensor] = {}
        """After them."""
        self.first = min((stage[0] for stage in agenda.stages), default=fused.cfg.n_layers)
        self.pos = torch.arange(self.n_pos, device=prompts.tokens.device)
        self.pos_embed: Tensor | None = None
        self.final = self._run()

    def _run(self) -> Float[Tensor, "prompt pos d"]:
        model = self.fused.model
        kept = self.agenda.any(-1, TOP)
        x = self.see((-1, "embed"), model.embed(self.prompts.tokens), kept)
        kind = self.fused.cfg.positional_embedding_type
        if kind in ("standard", "shortformer"):
            positions = self.see((-1, "pos_embed"), model.pos_embed(self.prompts.tokens, 0, None), kept)
            self.pos_embed = positions[0] if kind == "shortformer" else None
            x = x + positions if kind == "standard" else x
        for i in range(self.fused.cfg.n_layers):
            x = self._block(i, self.fused.layer(i), x)
        return x

    @property
    def n_bytes(self) -> int:
        """Bytes that are kept."""
        kept = {
            value.untyped_storage().data_ptr(): value.untyped_storage().nbytes()
            for value in (*self.raw.values(), *self.value.values())
        }
        return sum(kept.values()) + self.final.nbytes

    def see(self, stage: Stage, value: Tensor, keep: bool = False) -> Tensor:
        """The value after the shared edits; the runs' own are tried on it, and it is kept if anyone will ask for it."""
        raw = value
        for edit in self.agenda.base.get(stage, []):
            value = edit.apply(value, self.prompts, self.agenda.numbers)
        if keep or stage in self.agenda.stages:
            self.raw[stage], self.value[stage] = raw, value
        self.scout.look(stage, value)
        return value

    def _block(self, i: int, layer: Layer, x: Tensor) -> Tensor:
        kept = i >= self.first
        x = self.see((i, "resid_pre"), x, kept)
        z = self._attention(i, layer, x.flatten(0, 1), kept)
        z = self.see(
            (i, "z"), z.unflatten(-1, (layer.n_heads, layer.d_head)), self.agenda.any(i, ("result", *ATTENTION))
        )
        out = layer.out(z.flatten(2).flatten(0, 1)).view_as(x)
        out = self._result(i, layer, z, out)
        out = self.see((i, "attn_out"), out)
        mid = x + out
        if layer.mlp is None:
            return self.see((i, "resid_post"), mid)
        parallel = self.fused.cfg.parallel_attn_mlp
        mid = mid if parallel else self.see((i, "resid_mid"), mid)
        if kept and self.agenda.any(i, (*HIDDEN, "mlp_out")):
            self.value[i, "mid"] = mid
        out = self.see((i, "mlp_out"), self._mlp(i, layer, x if parallel else mid))
        return self.see((i, "resid_post"), mid + out)

    def _attention(self, i: int, layer: Layer, x: Tensor, kept: bool) -> Float[Tensor, "prompt pos d_attn"]:
        """z, with rotated queries, keys and values kept as `Q`, `K`, `V`."""
        h = layer.norm1(x)
        turned = h if self.pos_embed is None else h + self.pos_embed.repeat(self.n_prompts, 1)
        in_full = self.agenda.any(i, ATTENTION)
        parts = {}
        for name, columns in (("q", layer.q_columns), ("k", layer.k_columns), ("v", layer.v_columns)):
            flat = layer.project(h if name == "v" else turned, columns)
            shaped = layer.heads(flat.unflatten(0, (self.n_prompts, self.n_pos)))
            parts[name] = self.see((i, name), shaped, in_full)
        pos = self.pos.expand(self.n_prompts, -1)
        q, k, v = layer.rotate(parts["q"], pos), layer.rotate(parts["k"], pos), parts["v"]
        if layer.rotary:
            q, k = self.see((i, "rot_q"), q), self.see((i, "rot_k"), k)
        if kept:
            self.value[i, "Q"], self.value[i, "K"], self.value[i, "V"] = q, k, v
        if not self.agenda.any(i, ("attn_scores", "pattern")):
            return layer.attend(q, k, v, 0)
        pattern = self.see((i, "attn_scores"), layer.scores(q, k, 0)).softmax(-1).nan_to_num(0.0)
        return layer.mix(self.see((i, "pattern"), pattern), v)

    def _result(self, i: int, layer: Layer, z: Tensor, out: Tensor) -> Tensor:
        """attn_out after the shared edits of head outputs; kept beside z as the stage `result`."""
        stage = (i, "result")
        if stage not in self.agenda.stages:
            return out
        both = torch.cat([z.flatten(2), out], -1)
        heads = HeadOutputs(layer.W_O, layer.n_heads)
        self.raw[stage] = both
        if self.agenda.base.get(stage):
            both = both.clone()
            self.agenda.apply(self.agenda.base[stage], both, np.arange(self.n_prompts), heads.write)
        self.value[stage] = both
        self.scout.look(stage, both, heads.tried)
        return both[..., z.shape[2] * z.shape[3] :]

    def _mlp(self, i: int, layer: Layer, x: Tensor) -> Tensor:
        flat = x.flatten(0, 1)
        shape = (self.n_prompts, self.n_pos, -1)
        if not self.agenda.any(i, HIDDEN):
            return layer.mlp_in_blocks(flat, 4096).view(shape)
        pre, linear = layer.mlp_pre(layer.norm2(flat))
        pre = self.see((i, "mlp_pre"), pre.view(shape), True)
        if linear is not None:
            linear = self.see((i, "mlp_pre_linear"), linear.view(shape), True)
        post = self.see((i, "mlp_post"), layer.mlp_post(pre, linear), True)
        return layer.mlp_out(post.flatten(0, 1)).view(shape)
