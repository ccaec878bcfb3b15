"""The rows of a patching sweep: which sites, alone or together, and whether two batches of prompts match at them."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from mechkit.core.places import Place, expand, places
from mechkit.core.prompts import Prompts
from mechkit.core.site import EACH, SQUARE_NAMES, Site
from mechkit.patching.features import dictionary_of, source_hook

Row = list[Site]
"""Sites that are patched together; most often one."""


def list_rows(model, sites: Any, prompts: Prompts, dictionaries: Mapping[str, Any]) -> list[Row]:
    """One row per site that `sites` expand to; a sequence inside the sequence is one row.

    Raises ValueError for a site the model or a dictionary lacks, and where there is none at all.
    """
    given = [sites] if isinstance(sites, str | Site) else list(sites)
    rows: list[Row] = []
    for one in given:
        alone = isinstance(one, str | Site)
        found = [site for part in ([one] if alone else one) for site in _expand(model, part, prompts, dictionaries)]
        rows += [[site] for site in found] if alone else [list(dict.fromkeys(found))]
    if not rows or [] in rows:
        raise ValueError(f"no sites to patch in {sites!r}; name some, such as 'L*.resid_pre@*'")
    return rows


def _expand(model, site: "str | Site", prompts: Prompts, dictionaries: Mapping[str, Any]) -> Iterable[Site]:
    site = Site.parse(site)
    if site.basis is None:
        return expand(model, site, prompts)
    dictionary = dictionary_of(dictionaries, site)
    features = range(dictionary.W_dec.shape[0]) if site.index == EACH else [site.index]
    here = expand(model, site.at(index=None), prompts)
    for one in here:
        source_hook(model, dictionary, one)
    return [one.at(index=index) for one in here for index in features]


def all_sites(rows: Iterable[Row]) -> list[Site]:
    """Every site of the rows, once."""
    return list(dict.fromkeys(site for row in rows for site in row))


def check_match(sites: Sequence[Site], clean: Prompts, other: Prompts, name: str) -> None:
    """Raise ValueError unless each site covers as many tokens of each clean prompt as of the `other` one.

    Where a prompt's two lengths differ, only spans and positions counted from the end match at all.
    """
    pairs = enumerate(zip(clean.lengths, other.lengths, strict=True))
    uneven = next(((i, a, b) for i, (a, b) in pairs if a != b), None)
    for site in one_per_position(sites):
        if uneven and not (_relative(site.pos) and (site.name not in SQUARE_NAMES or _relative(site.src))):
            i, ours, theirs = uneven
            raise ValueError(
                f"site '{site}': clean prompt {i} has {ours} tokens, {name} has {theirs}, so positions do not match; "
                "name a span, such as @subject, or count from the end, @-1"
            )
        for i, (a, b) in enumerate(zip(widths(site, clean), widths(site, other), strict=True)):
            if a != b:
                raise ValueError(
                    f"site '{site}' covers {_text(a)} tokens of clean prompt {i} and {_text(b)} of {name}; "
                    "patching needs as many: name one token, such as @subject[-1]"
                )


def one_per_position(sites: Iterable[Site]) -> list[Site]:
    """One site for each different position that is named."""
    return list({(site.pos, site.src, site.name in SQUARE_NAMES): site for site in sites}.values())


def widths(site: Site, prompts: Prompts) -> list[tuple[int, ...]]:
    """How many tokens a site covers in each prompt, by axis; none for single tokens."""
    return [_lengths(place) for place in places(site, prompts)]


def _lengths(place: Place) -> tuple[int, ...]:
    ends = place if isinstance(place, tuple) else (place,)
    return tuple(end.stop - end.start for end in ends if isinstance(end, slice))


def _relative(pos: int | str | None) -> bool:
    """Whether a position means the same in prompts of different lengths: a span, or counted from the end."""
    return pos < 0 if isinstance(pos, int) else pos is not None and ":" not in pos


def _text(width: tuple[int, ...]) -> str:
    return " by ".join(map(str, width))
