"""What senders' changes become while attention is held: rows of the residual stream, each on its own.

With every head's output held, a change at one position stays at that position: from block to block it passes the skip
connection, the norm and the MLP, and nothing else. So what all senders send is one growing batch of rows
`[row, d_model]`, a row for each sender, prompt and position that changed and that some receiver reads. A sender's rows
join at its own layer, and each receiver takes what it reads of the rows that pass it.

One row more, which changes nothing, travels with them: where it does not arrive as in the clean run, the model
computes something that these steps do not know, and the caller is told.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from mechkit.core.engine.fused import _GELU_TANH, Layer, norm_of, obstacle
from mechkit.core.places import cut, groups, paste, places
from mechkit.core.prompts import Pair, Prompts
from mechkit.core.site import Site

SENDERS = ("embed", "pos_embed", "resid_pre", "z", "attn_out", "resid_mid", "mlp_out", "resid_post")
"""Hooks that write to the residual stream (or are it), in forward order."""

RECEIVERS = ("resid_pre", "q", "k", "v", "resid_mid", "mlp_out", "resid_post")
"""Hooks whose values these steps compute, in forward order."""

_JOINS = {"embed": "pre", "pos_embed": "pre", "resid_pre": "pre", "mlp_out": "post", "resid_post": "post"}
_BASES = {"pre": "resid_pre", "mid": "resid_mid", "post": "resid_post"}
_PASSED = {"pre": 0, "mid": 4, "post": 6}
"""How many of `RECEIVERS` in a sender's own block lie before the point where it joins."""
_ROWS = 448
"""Rows that go through an MLP together: enough for a fast matrix product, few enough to stay in the cache."""


@dataclass
class Rows:
    """Changed rows of the residual stream, and whose they are."""

    sender: Int[Tensor, "row"]
    """Number of the sender."""
    prompt: Int[Tensor, "row"]
    """Number of the prompt, in its group."""
    pos: Int[Tensor, "row"]
    """Position of the row."""
    state: Float[Tensor, "row d_model"]
    """The residual stream there."""

    def __len__(self) -> int:
        return len(self.sender)

    def of(self, values: Shaped[Tensor, "prompt pos *slice"]) -> Shaped[Tensor, "row *slice"]:
        """What `values` holds at each row's prompt and position."""
        return values[self.prompt, self.pos]

    def where(self, keep: Bool[Tensor, "row"]) -> "Rows":
        """Some of the rows."""
        if bool(keep.all()):
            return self
        return Rows(self.sender[keep], self.prompt[keep], self.pos[keep], self.state[keep])

    def then(self, state: Float[Tensor, "row d_model"]) -> "Rows":
        """The same rows further on."""
        return Rows(self.sender, self.prompt, self.pos, state)

    @staticmethod
    def together(parts: Sequence["Rows"]) -> "Rows":
        """All rows of several, in order."""
        filled = [part for part in parts if len(part)] or list(parts[:1])
        names = ("sender", "prompt", "pos", "state")
        return Rows(*(torch.cat([getattr(part, name) for part in filled]) for name in names))


class LeanMLP(Layer):
    """The MLP of a block alone: its attention weights are not laid out."""

    def __init__(self, block) -> None:
        self.mlp, self.norm2 = block.mlp, norm_of(block.ln2)
        self.gated = hasattr(block.mlp, "W_gate")
        tanh = block.cfg.act_fn in _GELU_TANH
        self.act = partial(F.gelu, approximate="tanh") if tanh else block.mlp.act_fn


class Inbox:
    """What one receiver reads in every run: its clean slice, with what arrives written over it."""

    def __init__(self, site: Site, prompts: Prompts, clean: Float[Tensor, "prompt pos *slice"], n_runs: int) -> None:
        found = places(site, prompts)
        stretches = [(at, at + 1) if isinstance(at, int) else (at.start, at.stop) for at in found]  # type: ignore[union-attr]
        device = clean.device
        starts, stops = torch.tensor(stretches, device=device).T
        here = torch.arange(clean.shape[1], device=device)
        self.site, self.starts, self.single = site, starts, isinstance(found[0], int)
        self.reads: Bool[Tensor, "prompt pos"] = (here >= starts[:, None]) & (here < stops[:, None])
        width = torch.arange(int((stops - starts).max()), device=device)
        at = (starts[:, None] + width).clamp(max=clean.shape[1] - 1)
        self.clean = clean[torch.arange(len(prompts), device=device)[:, None], at]
        self.values = self.clean.expand(n_runs, *self.clean.shape).clone()

    def take(self, rows: Rows, read: Callable[[Tensor], Tensor], states: Tensor) -> None:
        """Write `read` of the rows' states over the clean slice, where the receiver reads."""
        here = rows.of(self.reads)
        some = rows.where(here)
        if len(some):
            values = read(states if len(some) == len(rows) else states[here])
            self.values[some.sender, some.prompt, some.pos - self.starts[some.prompt]] = values.to(self.values.dtype)

    def slices(self) -> Float[Tensor, "sender prompt *slice"]:
        """The receiver's slices for every sender; the last run is the control's and left out."""
        return self.values[:-1, :, 0] if self.single else self.values[:-1]

    def control(self) -> float:
        """Largest error of the control run, relative to the largest clean value."""
        return relative_error(self.values[-1], self.clean)


def swapped(site: Site, clean: Tensor, corrupt: Tensor, pair: Pair) -> Float[Tensor, "prompt pos *rest"]:
    """The hook tensor of the clean run with the slice of `site` from the corrupt run.

    Raises ValueError where the slice has not the same shape in both.
    """
    out = clean
    ends = zip(places(site, pair.clean), places(site, pair.corrupt), strict=True)
    for (here, there), numbers in groups(list(ends)):  # type: ignore[arg-type]
        part, new = out[numbers], cut(corrupt[numbers], site, there)
        old = cut(part, site, here)
        if old.shape != new.shape:
            raise ValueError(
                f"sender '{site}' is {list(old.shape[1:])} in the clean prompts and {list(new.shape[1:])} in the "
                "corrupt ones; name a position, or spans of one length"
            )
        out = out.index_copy(0, torch.tensor(numbers, device=out.device), paste(part, site, here, new))
    return out


class Deltas:
    """The propagation, on prompts of one length. `clean` and `corrupt` hold whole hook tensors by site."""

    def __init__(
        self, model, pair: Pair, receivers: Sequence[Site], hold_mlps: bool, clean: Mapping, corrupt: Mapping
    ) -> None:
        self.model, self.pair, self.receivers, self.hold_mlps = model, pair, list(receivers), hold_mlps
        self.clean, self.corrupt = clean, corrupt
        self.lean = obstacle(model) is None
        self.last = max(layer_of(site) for site in receivers)
        cfg = model.cfg
        self.sequential = not (cfg.attn_only or cfg.parallel_attn_mlp)

    @property
    def bytes_per_sender(self) -> int:
        """About how much memory the rows of one sender take, and what is written over for its receivers."""
        inboxes = self._inboxes(0)
        rows = int(torch.stack([inbox.reads for inbox in inboxes]).any(0).sum()) * self.model.cfg.d_model
        values = sum(inbox.clean.numel() for inbox in inboxes)
        return (8 * rows + 3 * values) * inboxes[0].clean.element_size()

    @staticmethod
    def needs(model, senders: Iterable[Site], receivers: Sequence[Site], hold_mlps: bool) -> list[Site]:
        """The sites whose clean hook tensors a propagation reads."""
        senders = list(senders)
        cfg = model.cfg
        parallel = cfg.attn_only or cfg.parallel_attn_mlp
        bases = {Site(_BASES[join_of(site, parallel)], layer_of(site)) for site in senders}
        layers = range(max(layer_of(site) for site in receivers) + 1)
        held = {Site(name, layer) for layer in layers for name in _held(hold_mlps)}
        written = {whole(site) for site in senders}
        control = {Site("resid_pre", layer=0)}
        return sorted(bases | held | written | control | {site.at(pos=None) for site in receivers}, key=str)

    def values(self, senders: Sequence[Site]) -> tuple[list[Float[Tensor, "sender prompt *slice"]], float]:
        """Each receiver's slices for every sender, and the relative error of the row that changes nothing."""
        inboxes = self._inboxes(len(senders) + 1)
        rows = self._control(inboxes, len(senders))
        for layer in range(self.last + 1):
            rows = self._block(layer, rows, list(enumerate(senders)), inboxes)
        errors = [inbox.control() for inbox in inboxes]
        heads = {layer_of(site) for site in senders if site.name == "z"}
        errors += [self._unwritten(layer) for layer in heads if layer <= self.last]
        return [inbox.slices() for inbox in inboxes], max(errors)

    def _inboxes(self, n_runs: int) -> list[Inbox]:
        return [Inbox(site, self.pair.clean, self.clean[site.at(pos=None)], n_runs) for site in self.receivers]

    def _control(self, inboxes: Sequence[Inbox], number: int) -> Rows:
        """Rows that change nothing: the first position of the first prompt that each receiver reads."""
        pos = torch.stack([inbox.starts[0] for inbox in inboxes]).unique()
        state = self.clean[Site("resid_pre", layer=0)][0, pos]
        return Rows(torch.full_like(pos, number), torch.zeros_like(pos), pos, state)

    def _block(self, layer: int, rows: Rows, senders: Sequence[tuple[int, Site]], inboxes: Sequence[Inbox]) -> Rows:
        block = self.model.blocks[layer]
        mine = [(number, site) for number, site in senders if layer_of(site) == layer]
        rows = self._join("pre", layer, rows, mine, inboxes)
        self._tell(layer, ("resid_pre", "q", "k", "v"), rows, rows.state, inboxes)
        attn_out = rows.of(self.clean[Site("attn_out", layer)])
        if self.sequential:
            rows = self._join("mid", layer, rows.then(rows.state + attn_out), mine, inboxes)
            self._tell(layer, ("resid_mid",), rows, rows.state, inboxes)
            rows = self._ahead(rows, layer, "mlp_out", inboxes)
        written = 0 if self.model.cfg.attn_only else self._mlp(layer, block, rows)
        if isinstance(written, Tensor):
            self._tell(layer, ("mlp_out",), rows, written, inboxes)
            self._tell_own(layer, mine, inboxes)
        if not self.sequential:
            written = attn_out + written
        rows = self._join("post", layer, rows.then(rows.state + written), mine, inboxes)
        self._tell(layer, ("resid_post",), rows, rows.state, inboxes)
        return self._ahead(rows, layer + 1, "resid_pre", inboxes)

    def _ahead(self, rows: Rows, layer: int, name: str, inboxes: Sequence[Inbox]) -> Rows:
        """The rows that are still to be read, at that hook or later."""
        return rows.where(rows.of(reach(inboxes, layer, RECEIVERS.index(name))))

    def _mlp(self, layer: int, block, rows: Rows) -> Float[Tensor, "row d_model"]:
        if self.hold_mlps:
            return rows.of(self.clean[Site("mlp_out", layer)])
        if self.lean and len(rows):
            return LeanMLP(block).mlp_in_blocks(rows.state, _ROWS)
        return block.apply_mlp(block.ln2(rows.state[None]))[0]

    def _join(self, point: str, layer: int, rows: Rows, senders, inboxes: Sequence[Inbox]) -> Rows:
        """The rows, and those of the senders that join at this point of the block."""
        parallel = not self.sequential
        joining = [(number, site) for number, site in senders if join_of(site, parallel) == point]
        if not joining:
            return rows
        reads = reach(inboxes, layer, _PASSED[point])
        base = self.clean[Site(_BASES[point], layer)]
        return Rows.together([rows, self._started(joining, base, reads)])

    def _started(self, senders: Sequence[tuple[int, Site]], base: Tensor, reads: Bool[Tensor, "prompt pos"]) -> Rows:
        """The rows of senders of one layer where they change `base` and are read."""
        places = reads.nonzero()
        changes = self._changes([site for _, site in senders], places)
        which, place = (changes != 0).any(-1).nonzero(as_tuple=True)
        prompt, pos = places[place].T
        state = base[prompt, pos] + changes[which, place].to(base.dtype)
        return Rows(torch.tensor([number for number, _ in senders], device=which.device)[which], prompt, pos, state)

    def _changes(self, sites: Sequence[Site], places: Int[Tensor, "place 2"]) -> Float[Tensor, "sender place d_model"]:
        """What each sender's corrupt value changes in the residual stream at these prompts and positions."""
        heads = [
            site for site in sites if site.name == "z" and site.head is not None and site.pos is site.index is None
        ]
        by_head = self._by_head(heads[0], places) if heads else None
        changes = [
            self._written(site, places) if by_head is None or site not in heads else by_head[int(site.head or 0)]
            for site in sites
        ]
        return torch.stack([change.to(torch.promote_types(change.dtype, torch.float32)) for change in changes])

    def _by_head(self, site: Site, places: Int[Tensor, "place 2"]) -> Float[Tensor, "head place d_model"] | None:
        """What each head of a layer changes when all its z is corrupt; None where the two sides differ in shape."""
        clean, corrupt = self.clean[whole(site)], self.corrupt[whole(site)]
        if clean.shape != corrupt.shape:
            return None
        W_O = self._W_O(site)
        change = (corrupt - clean)[tuple(places.T)].to(W_O)
        return torch.bmm(change.transpose(0, 1), W_O)

    def _written(self, site: Site, places: Int[Tensor, "place 2"]) -> Float[Tensor, "place d_model"]:
        """What one sender changes in the residual stream."""
        change = self._change(site)[tuple(places.T)]
        if site.name != "z":
            return change
        W_O = self._W_O(site)
        return change.to(W_O).flatten(1) @ (W_O.flatten(0, 1) if site.head is None else W_O[int(site.head)])

    def _change(self, site: Site) -> Float[Tensor, "prompt pos *slice"]:
        """Corrupt minus clean on the sender's own hook; a head's alone, as a hook tensor of one head."""
        clean, corrupt = self.clean[whole(site)], self.corrupt[whole(site)]
        if site.head is not None:
            clean, corrupt, site = clean[:, :, site.head, None], corrupt[:, :, site.head, None], site.at(head=0)
        return swapped(site, clean, corrupt, self.pair) - clean

    def _W_O(self, site: Site) -> Float[Tensor, "head d_head d_model"]:
        W_O = self.model.blocks[layer_of(site)].attn.W_O
        return W_O.to(torch.promote_types(W_O.dtype, torch.float32))

    def _unwritten(self, layer: int) -> float:
        """Relative error of W_O on the clean heads as what attention writes, at one position."""
        W_O, b_O = self._W_O(Site("z", layer)), self.model.blocks[layer].attn.b_O
        z, written = (self.clean[Site(name, layer)][0, -1] for name in ("z", "attn_out"))
        return relative_error(z.flatten().to(W_O) @ W_O.flatten(0, 1) + b_O, written)

    def _tell(self, layer: int, names: Sequence[str], rows: Rows, states: Tensor, inboxes: Sequence[Inbox]) -> None:
        for inbox in inboxes:
            if layer_of(inbox.site) == layer and inbox.site.name in names:
                inbox.take(rows, lambda x, site=inbox.site: self._read(site, x), states)

    def _tell_own(self, layer: int, senders: Sequence[tuple[int, Site]], inboxes: Sequence[Inbox]) -> None:
        """An MLP that sends to itself is read as it sends."""
        mine = [(number, site) for number, site in senders if site.name == "mlp_out"]
        for inbox in inboxes:
            if mine and inbox.site.name == "mlp_out" and layer_of(inbox.site) == layer:
                rows = self._started(mine, self.clean[Site("mlp_out", layer)], inbox.reads)
                inbox.take(rows, lambda x, site=inbox.site: self._read(site, x), rows.state)

    def _read(self, site: Site, x: Float[Tensor, "row d_model"]) -> Float[Tensor, "row *slice"]:
        if site.name in ("q", "k", "v"):
            block = self.model.blocks[layer_of(site)]
            W, b = weights_in(block.attn, site)
            x = torch.einsum("rm,...md->r...d", block.ln1(x[None])[0], W) + b
        return x if site.index is None else x[..., int(site.index)]


def relative_error(found: Tensor, wanted: Tensor) -> float:
    """Largest difference over the largest of `wanted`; NaN where either has one."""
    return float((found - wanted).abs().max() / wanted.abs().max().clamp(min=torch.finfo(wanted.dtype).tiny))


def whole(site: Site) -> Site:
    """All of a site's hook tensor."""
    return site.at(pos=None, head=None, index=None)


def layer_of(site: Site) -> int:
    """The block of a site, the first for the embeddings."""
    return int(site.layer or 0)


def join_of(site: Site, parallel: bool) -> str:
    """The point of its block at which what a sender wrote is in the residual stream."""
    return _JOINS.get(site.name, "post" if parallel else "mid")


def reach(inboxes: Sequence[Inbox], layer: int, passed: int) -> Bool[Tensor, "prompt pos"]:
    """Positions that some receiver reads beyond the first `passed` of `RECEIVERS` in `layer`."""
    ahead = [
        inbox.reads for inbox in inboxes if (layer_of(inbox.site), RECEIVERS.index(inbox.site.name)) >= (layer, passed)
    ]
    return torch.stack(ahead).any(0) if ahead else torch.zeros_like(inboxes[0].reads)


def weights_in(attn, site: Site) -> tuple[Tensor, Tensor]:
    """Weights and bias of queries, or of the model's key/value heads, all of them or one."""
    stem = f"_{{}}_{site.name.upper()}" if site.name != "q" and hasattr(attn, "_W_K") else f"{{}}_{site.name.upper()}"
    W, b = getattr(attn, stem.format("W")), getattr(attn, stem.format("b"))
    return (W, b) if site.head is None else (W[site.head], b[site.head])


def _held(hold_mlps: bool) -> list[str]:
    return ["attn_out", "mlp_out"] if hold_mlps else ["attn_out"]
