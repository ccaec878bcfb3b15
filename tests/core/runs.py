"""Runs of every kind for tests of the sweep: all sites a model has, all edits, at all sorts of places."""

import random
from dataclasses import dataclass
from zlib import crc32

import torch

import mechkit as mk
from mechkit.core.interventions import Intervention
from mechkit.core.loop import hooked
from mechkit.core.places import cut, places
from mechkit.core.site import HEAD_NAMES, KEY_VALUE_NAMES, SQUARE_NAMES, Site

EVEN = mk.Prompts.from_tokens([[3, 1, 4, 1, 5], [9, 2, 6, 5, 3]], [7, 8], [9, 10], spans={"s": [(1, 3), (2, 4)]})
RAGGED = mk.Prompts.from_tokens(
    [[3, 1, 4, 1, 5], [5, 9, 2], [6, 5, 3, 5, 8]], [1, 2, 3], [5, 6, 7], spans={"s": [(1, 3), (0, 2), (3, 5)]}
)

TOP_NAMES = ("embed", "pos_embed", "ln_final", "ln_final.scale")
BLOCK_NAMES = (
    "attn_in", "q_input", "k_input", "v_input", "resid_pre", "ln1.normalized", "ln1.scale", "q", "k", "v", "rot_q",
    "rot_k", "attn_scores", "pattern", "z", "result", "attn_out", "resid_mid", "mlp_in", "ln2.normalized", "ln2.scale",
    "mlp_pre", "mlp_pre_linear", "mlp_mid", "mlp_post", "mlp_out", "resid_post",
)  # fmt: skip
POSITIONS = (None, 0, 1, 2, -1, -2, -3, "1:3", "0:2", "-2:", ":-1", "s", "s[0]", "s[-1]")
KINDS = ("zero", "replace", "replace each", "add", "add each", "scale", "flip", "mean", "noise", "project", "centre")
SQUARE_KINDS = ("zero", "replace", "replace each", "add", "add each", "scale", "mean")


class Centre(Intervention):
    """Subtract the slice's mean over its positions: what becomes of one position depends on the others."""

    def edit(self, x, prompts, place):
        return x - x.mean(1, keepdim=True)


class FirstToLast(Intervention):
    """Copy the slice's first position over its last: only the last one changes."""

    def edit(self, x, prompts, place):
        return torch.cat([x[:, :-1], x[:, :1]], 1)


@dataclass(frozen=True, eq=False)
class AtMost(Intervention):
    """Nothing where the slice is below its bound, so that what it does is up to the edits before it."""

    bound: float

    def edit(self, x, prompts, place):
        return x.clamp(max=self.bound)


@dataclass(frozen=True, eq=False)
class Overflow(Intervention):
    """Subtract, everywhere, what the last position has above a bound: nothing but after another edit."""

    bound: float

    def edit(self, x, prompts, place):
        return x - (x[:, -1:] - self.bound).clamp(min=0)


def shapes(model, prompts) -> dict[Site, torch.Size]:
    """The hook shape on all of `prompts` of every site that fires, without position, head or index."""
    found = {}
    blocks = [Site(name, layer) for layer in range(model.cfg.n_layers) for name in BLOCK_NAMES]
    known = [site for site in [*map(Site, TOP_NAMES), *blocks] if site.hook in model.hook_dict]
    hooks = [(site.hook, lambda x, hook, site=site: found.__setitem__(site, x.shape)) for site in known]
    with torch.no_grad(), hooked(model, hooks):
        model(prompts.tokens)
    return {site: found[site] for site in known if site in found}


def draw(shape, *key) -> torch.Tensor:
    """Numbers that depend on `key` alone, the same in every dtype."""
    generator = torch.Generator().manual_seed(crc32(repr(key).encode()))
    return torch.randn(shape, generator=generator).to(torch.bfloat16).float()


def edit(kind: str, site: Site, shape, prompts) -> Intervention:
    """An edit of `site`, whose hook has `shape`. Its values go over positions where prompts differ in length."""
    tail, n = _tail(site, shape, prompts), len(prompts)
    values = lambda *lead: draw((*lead, *tail), str(site), kind)  # noqa: E731
    return {
        "zero": lambda: mk.Zero(site),
        "replace": lambda: mk.Replace(site, values()),
        "replace each": lambda: mk.Replace(site, values(n)),
        "add": lambda: mk.Add(site, values()),
        "add each": lambda: mk.Add(site, values(n)),
        "scale": lambda: mk.Scale(site, 1.5),
        "flip": lambda: mk.Scale(site, -1.0),
        "mean": lambda: mk.Mean(site, values(4)),
        "noise": lambda: mk.Noise(site, 0.7, seed=len(tail)),
        "project": lambda: mk.ProjectOut(site, draw((2, tail[-1]), str(site))),
        "centre": lambda: Centre(site),
    }[kind]()


def _tail(site: Site, shape, prompts) -> list[int]:
    """The slice's shape, 1 along what differs between prompts."""
    square = site.name in SQUARE_NAMES
    sizes = [
        cut(torch.empty(1, *((shape[1], n, n) if square else (n, *shape[2:]))), site, place).shape[1:]
        for n, place in zip(prompts.lengths, places(site, prompts), strict=True)
    ]
    return [axis[0] if len(set(axis)) == 1 else 1 for axis in zip(*sizes, strict=True)]


def random_place(rng: random.Random, site: Site, shape) -> Site:
    """`site` at some position, head or index."""
    square = site.name in SQUARE_NAMES
    if site.name in HEAD_NAMES:
        n_heads = min(shape[2], 2) if site.name in KEY_VALUE_NAMES else shape[1 if square else 2]
        site = site.at(head=rng.choice([None, *range(n_heads)]))
    site = site.at(pos=rng.choice(POSITIONS))
    if square:
        return site.at(src=rng.choice(POSITIONS))
    return site.at(index=rng.randrange(shape[-1])) if rng.random() < 0.15 else site


def random_edit(rng: random.Random, site: Site, shape, prompts) -> Intervention:
    """Some edit of some place in `site`."""
    site = random_place(rng, site, shape)
    if site.name.endswith(".scale"):
        return edit("scale", site, shape, prompts)
    one_position = isinstance(site.pos, int) or str(site.pos).startswith("s[")
    left_out = {"centre"} if one_position else set()
    left_out |= {"project"} if site.index is not None else set()
    kinds = SQUARE_KINDS if site.name in SQUARE_NAMES else [kind for kind in KINDS if kind not in left_out]
    return edit(rng.choice(kinds), site, shape, prompts)


def single_runs(known: dict[Site, torch.Size], prompts, key: str, per_name: int) -> list[list[Intervention]]:
    """Runs of one edit each: every name in `known`, at `per_name` of its layers, each at some place."""
    rng = random.Random(key)
    by_name: dict[str, list[Site]] = {}
    for site in known:
        by_name.setdefault(site.name, []).append(site)
    chosen = [site for sites in by_name.values() for site in rng.sample(sites, min(per_name, len(sites)))]
    return [[random_edit(rng, site, known[site], prompts)] for site in chosen]


def random_runs(rng: random.Random, known: dict[Site, torch.Size], prompts, n_runs: int) -> list[list[Intervention]]:
    """Runs of none to three edits anywhere, in any order."""
    sites = list(known)
    return [
        [random_edit(rng, site, known[site], prompts) for site in rng.choices(sites, k=rng.randrange(4))]
        for _ in range(n_runs)
    ]


def unchanged_runs(slices: dict[str, torch.Tensor], last: int) -> list[list[Intervention]]:
    """Runs that leave every value as it is, given what the same engine read in the base run."""
    return [
        [],
        [mk.Scale("L0.resid_pre", 1.0)],
        [mk.Replace(site, value) for site, value in slices.items()],
        [FirstToLast(f"L{last}.resid_pre@0:1"), AtMost("embed", 1e6)],
    ]


def mixed_runs(known: dict[Site, torch.Size], prompts, slices: dict[str, torch.Tensor]) -> list[list[Intervention]]:
    """Runs of several edits: late before early, over each other, restoring, on some prompts only, over positions."""
    last = max(site.layer for site in known if site.layer is not None)
    mid = last // 2
    pre, z, end = f"L{last}.resid_pre@1", f"L{mid}.H0.z@-1", f"L{last}.resid_pre@-1"
    add = lambda text: edit("add", Site.parse(text), known[_bare(text)], prompts)  # noqa: E731
    bound = slices[end].max().item() + 0.01
    half = slices[z].clone()
    half[1:] += draw(half[1:].shape, "half")
    return [
        [mk.Zero(f"L{last}.attn_out@-1"), add("L0.resid_pre@1")],
        [mk.Zero(f"L{last}.resid_pre@-1"), add(f"L{mid}.q@2"), add("embed@0")],
        [add(f"L{mid}.resid_pre@-1"), add(f"L{last}.resid_pre@0")],
        [mk.Scale(f"L{mid}.resid_pre@-1", 2.0), add(f"L{mid}.resid_pre"), mk.Zero(f"L{mid}.resid_pre@s")],
        [add("embed@0"), mk.Replace(pre, slices[pre]), mk.Scale(f"L{last}.z@s", 2.0)],
        [add("L0.resid_pre@0"), mk.Replace(z, slices[z])],
        [mk.Replace(z, half)],
        [mk.Scale("L0.resid_pre", 4.0), AtMost(f"L{last}.resid_post", 1.5)],
        [mk.Scale("embed@-1", 9.0), Overflow(f"L{last}.resid_pre", bound)],
        [mk.Replace(f"L{last}.attn_scores@-1", -torch.inf), mk.Scale("L0.resid_pre@1", 2.0)],
        [mk.Scale(z, 1.0), add(f"L{last}.v@0"), mk.Scale("embed", 1.0)],
        [FirstToLast(f"L{mid}.resid_pre")],
        [Centre(f"L{mid}.v"), FirstToLast(f"L{last}.resid_pre@-2:"), Centre("L0.resid_pre@s")],
        [mk.Scale(f"L{mid}.attn_out@{pos}", -1.0) for pos in (2, 0, 1)],
    ]


RESTORED = ("L{last}.resid_pre@1", "L{mid}.H0.z@-1", "L{mid}.attn_out@s", "L{last}.resid_pre@-1")
"""Sites whose base values `mixed_runs` puts back and `unchanged_runs` puts in place of themselves."""


def restored(model) -> list[Site]:
    last = model.cfg.n_layers - 1
    return [Site.parse(text.format(last=last, mid=last // 2)) for text in RESTORED]


def _bare(text: str) -> Site:
    return Site.parse(text).at(head=None, pos=None, src=None, index=None)
