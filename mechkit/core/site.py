"""Addresses in a model: `Site`, `Edge` and their text form.

    L9.H6.z@-1                 layer 9, head 6, the z of attention, each prompt's last token
    L*.H*.z@-1                 every head of every layer in turn
    L8.mlp_post#*              every neuron of layer 8, all positions at once
    L5.H1.pattern@9<-4         attention from token 9 (destination) to token 4 (source)
    L8.resid_pre[sae]@2#4812   feature 4812 of the dictionary `sae`
    L3.resid_mid@subject[-1]   the last token of each prompt's span `subject`
    embed@0                    a site without a layer

`*` means each one in turn; a part left out means all of it at once. Names are TransformerLens's short
hook names. `L5.H5.z -> L9.H9.q` is an `Edge`.

>>> Site.parse("L9.H6.z@-1")
Site('L9.H6.z@-1')
>>> Site.parse("L9.H6.z@-1").hook
'blocks.9.attn.hook_z'
"""

import re
from dataclasses import dataclass, replace

EACH = "*"
"""Stands for each layer, head, position or index in turn."""

HEAD_NAMES = frozenset({"q", "k", "v", "z", "rot_q", "rot_k", "result", "pattern", "attn_scores"})
"""Hooks with a head axis."""

SQUARE_NAMES = frozenset({"pattern", "attn_scores"})
"""Hooks of shape `[prompt, head, dest, src]`; the others have the position on axis 1."""

KEY_VALUE_NAMES = frozenset({"k", "v", "rot_k"})
"""Hooks whose heads are the model's key/value heads."""

_MLP_NAMES = {"mlp_pre": "pre", "mlp_post": "post", "mlp_mid": "mid", "mlp_pre_linear": "pre_linear"}
_ALIASES = {"pre": "mlp_pre", "post": "mlp_post", "mid": "mlp_mid", "pre_linear": "mlp_pre_linear"}
_TOP_HOOKS = {
    "embed": "hook_embed",
    "pos_embed": "hook_pos_embed",
    "ln_final": "ln_final.hook_normalized",
    "ln_final.scale": "ln_final.hook_scale",
}

_COUNT = r"(?:\d+|\*)"
_POSITION = r"(?:\*|-?\d+(?::-?\d+)?|[A-Za-z_]\w*(?:\[-?\d+\])?)"
_SITE = re.compile(
    rf"(?:L(?P<layer>{_COUNT})\.)?(?:H(?P<head>{_COUNT})\.)?(?P<name>[a-z]\w*(?:\.[a-z]\w*)?)"
    rf"(?:\[(?P<basis>[^\[\]@#]+)\])?(?:@(?P<pos>{_POSITION})(?:<-(?P<src>{_POSITION}))?)?"
    rf"(?:#(?P<index>{_COUNT}))?"
)

Count = int | str | None
"""A number, `EACH`, or None for all at once."""


@dataclass(frozen=True, repr=False)
class Site:
    """A place in a model. `str(site)` is its text form and `Site.parse` reads it back."""

    name: str
    """TransformerLens's short hook name, such as `resid_pre`, `z` or `ln2.normalized`."""
    layer: Count = None
    """Block, from 0; None for sites without one (`embed`, `ln_final`)."""
    head: Count = None
    """Head, from 0; key/value heads for k and v; None for all heads at once."""
    pos: int | str | None = None
    """Token position (negative from each prompt's last real token), `2:5`, a span, `*`, or None for all."""
    src: int | str | None = None
    """Source position of an attention pattern, whose `pos` is the destination."""
    index: Count = None
    """Coordinate of the hook's last axis, or feature of `basis`."""
    basis: str | None = None
    """Name of the dictionary that `index` counts in; None for the hook's own coordinates."""

    def __post_init__(self) -> None:
        if self.name in _ALIASES:
            object.__setattr__(self, "name", _ALIASES[self.name])
        for field in ("layer", "head", "index"):
            value = getattr(self, field)
            if isinstance(value, int) and value < 0:
                raise ValueError(f"{field} is {value} in site '{self}'; it counts from 0")
        if self.head is not None and self.name not in HEAD_NAMES:
            raise ValueError(f"site '{self}' names a head, and '{self.name}' has none; leave out 'H{self.head}.'")
        if self.src is not None and self.name not in SQUARE_NAMES:
            raise ValueError(f"site '{self}' names a source position, which only pattern and attn_scores have")
        if self.layer is None and self.name in HEAD_NAMES:
            raise ValueError(f"site '{self}' needs a layer: write 'L0.{self}' or 'L*.{self}'")

    @classmethod
    def parse(cls, text: "str | Site") -> "Site":
        """The site that `text` names. Raises ValueError, quoting it, where it is not one."""
        if isinstance(text, Site):
            return text
        match = _SITE.fullmatch(text.strip())
        if match is None:
            raise ValueError(f"cannot read site '{text}'; write it like L9.H6.z@-1, L*.resid_pre@* or L8.mlp_post#12")
        part = match.groupdict()
        return cls(
            name=part["name"],
            layer=_number(part["layer"]),
            head=_number(part["head"]),
            pos=_number(part["pos"]),
            src=_number(part["src"]),
            index=_number(part["index"]),
            basis=part["basis"],
        )

    def __str__(self) -> str:
        parts = "" if self.layer is None else f"L{self.layer}."
        parts += "" if self.head is None else f"H{self.head}."
        parts += self.name
        parts += "" if self.basis is None else f"[{self.basis}]"
        if self.pos is not None or self.src is not None:
            parts += f"@{EACH if self.pos is None else self.pos}"
        parts += "" if self.src is None else f"<-{self.src}"
        return parts + ("" if self.index is None else f"#{self.index}")

    def __repr__(self) -> str:
        return f"Site('{self}')"

    @property
    def hook(self) -> str:
        """TransformerLens's full hook name. Raises ValueError while the layer is `*`."""
        if self.layer == EACH:
            raise ValueError(f"site '{self}' stands for many layers; expand it first")
        if self.layer is None:
            if self.name not in _TOP_HOOKS:
                raise ValueError(f"site '{self}' needs a layer: write 'L0.{self}' or 'L*.{self}'")
            return _TOP_HOOKS[self.name]
        block = f"blocks.{self.layer}"
        if self.name in HEAD_NAMES:
            return f"{block}.attn.hook_{self.name}"
        if self.name in _MLP_NAMES:
            return f"{block}.mlp.hook_{_MLP_NAMES[self.name]}"
        if "." in self.name:
            module, name = self.name.split(".")
            return f"{block}.{module}.hook_{name}"
        return f"{block}.hook_{self.name}"

    @property
    def is_concrete(self) -> bool:
        """Whether the site names one place, with no `*` left."""
        return EACH not in (self.layer, self.head, self.pos, self.src, self.index)

    def at(self, **parts: int | str | None) -> "Site":
        """The same site with some parts changed: `site.at(layer=3, pos=-1)`."""
        return replace(self, **parts)


@dataclass(frozen=True, repr=False)
class Edge:
    """A connection: what `sender` writes, as `receiver` reads it."""

    sender: Site
    """Where the signal is written."""
    receiver: Site
    """Where it is read."""

    @classmethod
    def parse(cls, text: "str | Edge") -> "Edge":
        """The edge that `text` names, `sender -> receiver`. Raises ValueError, quoting it, where it is not one."""
        if isinstance(text, Edge):
            return text
        ends = text.split("->")
        if len(ends) != 2:
            raise ValueError(f"cannot read edge '{text}'; write it like L5.H5.z -> L9.H9.q")
        return cls(Site.parse(ends[0]), Site.parse(ends[1]))

    def __str__(self) -> str:
        return f"{self.sender} -> {self.receiver}"

    def __repr__(self) -> str:
        return f"Edge('{self}')"


def _number(text: str | None) -> int | str | None:
    """`text` as an int where it is one."""
    return int(text) if text is not None and re.fullmatch(r"-?\d+", text) else text
