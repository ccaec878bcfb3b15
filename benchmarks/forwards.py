"""What does one forward pass cost: plain, with a cache, with one hook, with a hook at every point?

mechkit registers hooks on the points directly (`core.loop.hooked`); TransformerLens's own way is `run_with_hooks` and
`run_with_cache`; `transformers` runs the same weights with PyTorch's hooks; nnsight where it is installed. On CUDA,
where such passes are bound by launches, the same hooked pass also compiled and as a captured graph.
"""

from collections.abc import Callable, Iterator
from importlib.util import find_spec

import torch
from torch import Tensor

import mechkit as mk
from benchmarks.launch_bound import captured, compiled
from benchmarks.measure import Case, Row, Side, left_out, measured
from benchmarks.models import Subject, one_pass
from mechkit.core.loop import hooked
from mechkit.core.site import Site, short_name


@torch.no_grad()
def forward_rows(subject: Subject, device: str, size: str, seconds: float) -> Iterator[Row]:
    """Rows of every kind of forward pass, by prompt length of one model."""
    twin = None if subject.twin is None else subject.twin()
    for n_tokens in subject.lengths:
        prompts = subject.pair(n_tokens, first=None).clean
        known = one_pass(subject.model, prompts)
        for name, sides in _questions(subject.model, twin, prompts, device):
            case = Case(subject.name, f"{name}, {prompts.tokens.shape[1]} tokens", sides, *known)
            yield from measured(case, device, seconds)


def _questions(model, twin, prompts: mk.Prompts, device: str) -> Iterator[tuple[str, list[Side]]]:
    tokens = prompts.tokens
    yield "plain forward", [Side("HookedTransformer", lambda: model(tokens)), *_plain_twins(twin, tokens)]
    for words, names in (("cache of all names", _readable(model, tokens)), ("cache of resid_post", _resid_post(model))):
        yield words, _caches(model, prompts, names)
    yield "one hook", [*_one_hook(model, twin, tokens), *_launch_bound(model, tokens, device)]
    yield "a hook at every point", _every_hook(model, tokens)
    for words, names in (("one hook", _resid_post(model)[:1]), ("a hook at every point", list(model.hook_dict))):
        yield f"set-up alone, {words}", _set_up(model, names)


def _plain_twins(twin, tokens: Tensor) -> list[Side]:
    if twin is None:
        return []
    sides = [Side("transformers", lambda: twin(tokens).logits)]
    if find_spec("nnsight") is not None:
        run = _traced(twin, tokens)
        try:
            run()
        except Exception as error:  # its interface has changed between versions
            left_out("nnsight", error)
        else:
            sides.append(Side("nnsight", run))
    return sides


def _traced(twin, tokens: Tensor) -> Callable[[], Tensor]:
    from nnsight import NNsight  # pyright: ignore[reportMissingImports]

    traced = NNsight(twin)

    def run() -> Tensor:
        with traced.trace(tokens):
            logits = traced.output.logits.save()
        return logits  # noqa: RET504 - its value is there only after the block

    return run


def _caches(model, prompts: mk.Prompts, names: list[str]) -> list[Side]:
    sites = [Site.parse(short_name(name)) for name in names]

    def ours() -> list[Tensor]:
        found = mk.activations(model, prompts, sites)
        return [found[site] for site in sites]

    def theirs() -> list[Tensor]:
        _, cache = model.run_with_cache(prompts.tokens, names_filter=names)
        return [cache[name] for name in names]

    return [Side("mechkit activations", ours), Side("run_with_cache", theirs)]


def _one_hook(model, twin, tokens: Tensor) -> list[Side]:
    """The residual stream after the middle layer, its last token zeroed."""
    middle = model.cfg.n_layers // 2
    name = f"blocks.{middle}.hook_resid_pre"

    def zero_last(x: Tensor, hook=None) -> Tensor:
        x = x.clone()
        x[:, -1] = 0
        return x

    def ours() -> Tensor:
        with hooked(model, [(name, zero_last)]):
            return model(tokens)

    def with_torch_hook() -> Tensor:
        handle = twin.transformer.h[middle].register_forward_pre_hook(
            lambda block, args: (zero_last(args[0]), *args[1:])
        )
        try:
            return twin(tokens).logits
        finally:
            handle.remove()

    sides = [Side("mechkit hooked", ours)]
    sides.append(Side("run_with_hooks", lambda: model.run_with_hooks(tokens, fwd_hooks=[(name, zero_last)])))
    return sides if twin is None else [*sides, Side("transformers, PyTorch hook", with_torch_hook)]


def _launch_bound(model, tokens: Tensor, device: str) -> list[Side]:
    """The same edit without its Python: on CUDA only, where it can win."""
    if device != "cuda":
        return []
    name = f"blocks.{model.cfg.n_layers // 2}.hook_resid_pre"
    last = torch.arange(tokens.shape[1], device=tokens.device) == tokens.shape[1] - 1
    makers = {"captured graph": captured, "compiled": compiled}
    found = {words: make(model, tokens, name, last[None, :, None]) for words, make in makers.items()}
    return [Side(words, run, captured=True) for words, run in found.items() if run is not None]


def _every_hook(model, tokens: Tensor) -> list[Side]:
    """A hook that does nothing at every point; how many fired stands beside the logits."""
    fired = [0]

    def nothing(x, hook) -> None:
        fired[0] += 1

    hooks = [(name, nothing) for name in model.hook_dict]

    def counted(run: Callable[[], Tensor]) -> Callable[[], list[Tensor]]:
        def answer() -> list[Tensor]:
            fired[0] = 0
            return [run(), torch.tensor(fired[0])]

        return answer

    def ours() -> Tensor:
        with hooked(model, hooks):
            return model(tokens)

    return [
        Side("mechkit hooked", counted(ours)),
        Side("run_with_hooks", counted(lambda: model.run_with_hooks(tokens, fwd_hooks=hooks))),
    ]


def _set_up(model, names: list[str]) -> list[Side]:
    """Hooks put in and taken out around nothing; the answer is how many were in place inside."""
    hooks = [(name, lambda x, hook: None) for name in names]

    def installed(block: Callable) -> Callable[[], Tensor]:
        def answer() -> Tensor:
            with block():
                return torch.tensor(sum(len(model.hook_dict[name]._forward_hooks) for name in names))

        return answer

    return [
        Side("mechkit hooked", installed(lambda: hooked(model, hooks)), 0),
        Side("model.hooks", installed(lambda: model.hooks(fwd_hooks=hooks)), 0),
    ]


def _resid_post(model) -> list[str]:
    return [f"blocks.{layer}.hook_resid_post" for layer in range(model.cfg.n_layers)]


def _readable(model, tokens: Tensor) -> list[str]:
    """Names that fire on this model as it is set up and that a site can name."""
    _, cache = model.run_with_cache(tokens)
    return [name for name in cache if short_name(name) != name]
