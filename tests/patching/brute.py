"""Activation patching by its definition: one hooked pass per row and prompt, indices written out by hand."""

import torch

HEADS = ("q", "k", "v", "z", "result")


def spot(site, prompts, i):
    """Where a site lies in prompt `i`'s own tensor, which has no batch axis."""
    every = slice(None)

    def where(pos):
        if pos is None:
            return every
        if isinstance(pos, int):
            return pos % prompts.lengths[i]
        if ":" in pos:
            return slice(*map(int, pos.split(":")))
        name, _, which = pos.partition("[")
        start, end = prompts.spans[name][i]
        return range(start, end)[int(which[:-1])] if which else slice(start, end)

    head = every if site.head is None else site.head
    if site.name == "pattern":
        return head, where(site.pos), where(site.src)
    axes = (where(site.pos), head) if site.name in HEADS else (where(site.pos),)
    return axes if site.index is None else (*axes, Ellipsis, site.index)


def cached(model, prompts, i, hooks=()):
    """Every activation of prompt `i` alone, without the batch axis."""
    seen = {}

    def keep(x, hook):
        seen[hook.name] = x[0].clone()

    with torch.no_grad():
        logits = model.run_with_hooks(prompts[i].tokens, fwd_hooks=[*hooks, (lambda name: True, keep)])
    return logits, seen


def put(site, prompts, i, value):
    """A hook that puts `value` where `site` lies in prompt `i`."""

    def hook(x, hook):
        x = x.clone()
        x[(0, *spot(site, prompts, i))] = value
        return x

    return site.hook, hook


def score(model, prompts, i, metric, hooks=()):
    with torch.no_grad():
        return metric(model.run_with_hooks(prompts[i].tokens, fwd_hooks=list(hooks)), prompts[i])[0]


def patched(model, target, source, rows, metric):
    """Changes `[row, prompt]` of the metric when each row's sites take their values in the source run."""
    scores = torch.empty(len(rows), len(target))
    for i in range(len(target)):
        _, values = cached(model, source, i)
        before = score(model, target, i, metric)
        for r, row in enumerate(rows):
            hooks = [put(site, target, i, values[site.hook][spot(site, source, i)]) for site in row]
            scores[r, i] = score(model, target, i, metric, hooks) - before
    return scores


def gap(model, target, source, metric):
    both = [[score(model, side, i, metric) for i in range(len(side))] for side in (source, target)]
    return torch.tensor(both[0]) - torch.tensor(both[1])
