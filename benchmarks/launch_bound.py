"""One hooked forward pass without its Python: as a captured CUDA graph, and compiled.

Both hold `torch.where(mask, value, x)` at one hook point, with mask and value in buffers that a caller may refill, so
that one capture serves every position and value. Neither is assumed to work: what cannot be captured is left out of
the table, and the answers of what can are compared before it is timed.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks.measure import left_out
from mechkit.core.loop import hooked

WARM_UPS = 3
"""Passes before a capture: the first ones choose kernels and allocate workspaces, which must not be recorded."""


@torch.no_grad()
def captured(model, tokens: Tensor, name: str, mask: Tensor) -> Callable[[], Tensor] | None:
    """A replay of the pass with zeros where `mask` is set at `name`; None, saying why on stderr, where it cannot be."""
    static, value = tokens.clone(), torch.zeros((), device=tokens.device)
    edit = _edit(name, mask, value)
    graph = torch.cuda.CUDAGraph()
    try:
        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside), hooked(model, [edit]):
            for _ in range(WARM_UPS):
                model(static)
        torch.cuda.current_stream().wait_stream(aside)
        with hooked(model, [edit]), torch.cuda.graph(graph):
            logits = model(static)
    except RuntimeError as error:
        return left_out("captured graph", error)

    def run() -> Tensor:
        static.copy_(tokens)
        graph.replay()
        return logits.clone()  # the next replay writes over `logits`

    return run


@torch.no_grad()
def compiled(model, tokens: Tensor, name: str, mask: Tensor) -> Callable[[], Tensor] | None:
    """The pass compiled with its launches in one graph; None, saying why on stderr, where it cannot be.

    The hook is in place while the function is traced, and stays in it: Dynamo does not look at a module's hooks again.
    """
    torch.compiler.reset()  # nothing compiled for another model or length is to be met again, its hook in it
    value = torch.zeros((), device=tokens.device)
    edit = _edit(name, mask, value)
    run_compiled = torch.compile(lambda ids: model(ids), mode="reduce-overhead")
    try:
        with hooked(model, [edit]):
            for _ in range(WARM_UPS):
                run_compiled(tokens)
    except Exception as error:  # Dynamo and Inductor each have their own
        return left_out("compiled", error)

    def run() -> Tensor:
        torch.compiler.cudagraph_mark_step_begin()
        return run_compiled(tokens).clone()  # the next step writes over the output

    return run


def _edit(name: str, mask: Tensor, value: Tensor) -> tuple[str, Callable]:
    return name, lambda x, hook: torch.where(mask, value.to(x.dtype), x)
