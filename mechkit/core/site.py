"""Addresses in a model: `Site`, `Edge` and their text form.

    L9.H6.z@-1                 layer 9, head 6, the z of attention, each prompt's last token
    L*.H*.z@-1                 every head of every layer in turn
    L8.mlp_post#*              every neuron of layer 8, all positions at once
    L5.H1.pattern@9<-4         attention from token 9 (destination) to token 4 (source)
    L8.resid_pre[sae]@2#4812   feature 4812 of the dictionary `sae`
    L3.resid_mid@subject[-1]   the last token of each prompt's span `subject`
    L3.resid_mid@-3:           each prompt's last three tokens
    embed@0                    a site without a layer

`*` means each one in turn; a part left out means all of it at once. Names are TransformerLens's short
hook names. `L5.H5.z -> L9.H9.q` is an `Edge`.

>>> Site.parse("L9.H6.z@-1")
Site('L9.H6.z@-1')
>>> Site.parse("L9.H6.z@-1").hook
'blocks.9.attn.hook_z'
"""

import operator
import re
from dataclasses import dataclass, replace

EACH = "*"
"""Stands for each layer, head, position or index in turn."""

_HEAD_INPUTS = frozenset({"q_input", "k_input", "v_input", "attn_in"})

HEAD_NAMES = _HEAD_INPUTS | {"q", "k", "v", "z", "rot_q", "rot_k", "result", "pattern", "attn_scores"}
"""Hooks with a head axis."""

SQUARE_NAMES = frozenset({"pattern", "attn_scores"})
"""Hooks of shape `[prompt, head, dest, src]`; the others have the position on axis 1."""

KEY_VALUE_NAMES = frozenset({"k", "v", "rot_k", "k_input", "v_input"})
"""Hooks whose heads are the model's key/value heads."""

_MLP_NAMES = {"mlp_pre": "pre", "mlp_post": "post", "mlp_mid": "mid", "mlp_pre_linear": "pre_linear"}
_ALIASES = {short: name for name, short in _MLP_NAMES.items()} | {"ln_final.normalized": "ln_final"}
_TOP_HOOKS = {
    "embed": "hook_embed",
    "pos_embed": "hook_pos_embed",
    "ln_final": "ln_final.hook_normalized",
    "ln_final.scale": "ln_final.hook_scale",
}

_COUNT = r"(?:\d+|\*)"
_STRETCH = r"-?\d+:(?:-?\d+)?|:-?\d+"
_POSITION = rf"(?:\*|{_STRETCH}|-?\d+|[A-Za-z_]\w*(?:\[-?\d+\])?)"
_NAME = r"[a-z]\w*(?:\.[a-z]\w*)?"
_BASIS = r"[^\[\]@#<>]+"
_SITE = re.compile(
    rf"(?:L(?P<layer>{_COUNT})\.)?(?:H(?P<head>{_COUNT})\.)?(?P<name>{_NAME})(?:\[(?P<basis>{_BASIS})\])?"
    rf"(?:@(?=[^#])(?P<pos>{_POSITION})?(?:<-(?P<src>{_POSITION}))?)?(?:#(?P<index>{_COUNT}))?"
)
_COUNTED = frozenset({"layer", "head", "index"})
_NUMBERED = _COUNTED | {"pos", "src"}
_FORMS = {part: re.compile(_COUNT if part in _COUNTED else _POSITION) for part in sorted(_NUMBERED)}
_FORMS |= {"name": re.compile(_NAME), "basis": re.compile(_BASIS)}

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
        for part, form in _FORMS.items():
            value = getattr(self, part)
            if value is not None:
                self._check_part(part, value, form)
        if self.name in _ALIASES:
            object.__setattr__(self, "name", _ALIASES[self.name])
        if self.head is not None and self.name not in HEAD_NAMES:
            raise ValueError(f"site '{self}' names a head, and '{self.name}' has none; leave out 'H{self.head}.'")
        if self.src is not None and self.name not in SQUARE_NAMES:
            raise ValueError(f"site '{self}' names a source position, which only pattern and attn_scores have")
        if self.index is not None and self.name in SQUARE_NAMES:
            raise ValueError(f"site '{self}' has an index, and '{self.name}' has none; write @9<-4 for its source")
        if self.layer is None and self.name in HEAD_NAMES:
            raise ValueError(f"site '{self}' needs a layer: write 'L0.{self}' or 'L*.{self}'")

    def _check_part(self, part: str, value, form: re.Pattern) -> None:
        """One part, its numbers as Python's own. Raises ValueError for what the text form could not say."""
        if part in _NUMBERED and type(value) is not int:
            value = _number(value)
            object.__setattr__(self, part, value)
        if isinstance(value, int):
            if value < 0 and part in _COUNTED:
                raise ValueError(f"{part} is {value} in site '{self}'; it counts from 0")
        elif form.fullmatch(value) is None:
            raise ValueError(f"{part} is {value!r} in site '{self}'; write sites like L9.H6.z@-1 or L8.mlp_post#12")

    @classmethod
    def parse(cls, text: "str | Site") -> "Site":
        """The site that `text` names. Raises ValueError, quoting it, where it is not one."""
        if isinstance(text, Site):
            return text
        if not isinstance(text, str):
            raise TypeError(f"a site is a Site or its text, such as 'L9.H6.z@-1', not {type(text).__name__}")
        match = _SITE.fullmatch(text.strip())
        if match is None or "hook_" in text:
            short = short_name(text)
            hint = "write it like L9.H6.z@-1 or L8.mlp_post#12" if short == text else f"write '{short}'"
            raise ValueError(f"cannot read site '{text}'; {hint}")
        return cls(**match.groupdict())

    def __str__(self) -> str:
        parts = "" if self.layer is None else f"L{self.layer}."
        parts += "" if self.head is None else f"H{self.head}."
        parts += self.name
        parts += "" if self.basis is None else f"[{self.basis}]"
        if self.pos is not None or self.src is not None:
            parts += f"@{'' if self.pos is None else self.pos}"
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
        if self.name in HEAD_NAMES - _HEAD_INPUTS:
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


def short_name(hook: str) -> str:
    """The site text of a full hook name: `blocks.9.attn.hook_z` is `L9.z`."""
    tops = {full: name for name, full in _TOP_HOOKS.items()}
    block = re.fullmatch(r"blocks\.(\d+)\.(?:(\w+)\.)?hook_(\w+)", hook.strip())
    if block is None:
        return tops.get(hook.strip(), hook)
    layer, module, name = block.groups()
    if module == "mlp":
        name = _ALIASES.get(name, f"mlp.{name}")
    elif module is not None and not (module == "attn" and name in HEAD_NAMES):
        name = f"{module}.{name}"
    return f"L{layer}.{name}"


def _number(value) -> int | str:
    """`value` as an int where it is one, written or counted (NumPy's and torch's too)."""
    if isinstance(value, str):
        return int(value) if re.fullmatch(r"-?\d+", value) else value
    return operator.index(value)
