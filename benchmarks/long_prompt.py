"""Does a graph of a long prompt fit into memory, and what does it cost?

    python -m benchmarks.long_prompt                      # 1,024 tokens, 5,000 nodes, 16 GiB, GPT-2-small shape
    python -m benchmarks.long_prompt --tokens 128 --nodes 300

Random weights and tokens; TopK transcoders that keep `--active` features a token. The most influential features get
their rows, the graph is pruned, and what was covered is printed beside time and the process's peak of memory. Model,
dictionaries and Python are part of that peak, so `memory=` is the limit less what they hold before the graph.
"""

import resource
import sys
import time
from typing import Annotated

import torch
import typer

import mechkit as mk
from benchmarks.table import number
from mechkit.cli.terminal import bars
from mechkit.dictionaries import Transcoder

GIB = 1 << 30


def main(
    tokens: Annotated[int, typer.Option(min=2, help="Tokens of the prompt.")] = 1024,
    nodes: Annotated[int, typer.Option(min=1, help="Features that get a row.")] = 5000,
    active: Annotated[int, typer.Option(min=1, help="Active features of a token, in each layer.")] = 30,
    features: Annotated[int, typer.Option(min=1, help="Features of each dictionary.")] = 24_576,
    gib: Annotated[float, typer.Option(help="Memory of the whole process.")] = 16.0,
    threads: Annotated[int, typer.Option(min=1, help="Threads.")] = 1,
) -> None:
    """Trace one prompt, and print what was covered, time and peak."""
    torch.set_num_threads(threads)
    model, bases = made(tokens, features, active)
    prompt = torch.randint(0, model.cfg.d_vocab, (1, tokens), generator=torch.Generator().manual_seed(0))
    held = peak()
    busy, wall = time.process_time(), time.perf_counter()
    with bars(sys.stderr):
        graph = mk.trace(model, prompt[0].tolist(), bases, max_nodes=nodes, memory=int(gib * GIB - held), check=False)
    busy, wall = time.process_time() - busy, time.perf_counter() - wall
    n_rows, n_features = graph.weighted.n_features, len(graph.attribution.features)
    print(
        f"GPT-2-small shape, {tokens:,} tokens, dictionaries of {features:,} features: "
        f"{n_features:,} active features, {n_rows:,} with a row, {graph.rows.n_stored:,} numbers stored, "
        f"coverage {graph.coverage:.3f}; pruned to {len(graph.kept_sources):,} nodes and {len(graph.kept.places):,} "
        f"edges; {number(busy)} s CPU, {number(wall)} s on the clock with {threads} thread{'s' * (threads > 1)}; "
        f"peak {peak() / GIB:.2f} GiB, of it {held / GIB:.2f} GiB before the graph"
    )


def made(n_ctx: int, n_features: int, active: int):
    """The model, and one transcoder for each layer; all random."""
    from transformer_lens import HookedTransformer, HookedTransformerConfig

    config = HookedTransformerConfig(
        n_layers=12, d_model=768, n_heads=12, d_head=64, d_mlp=3072, n_ctx=n_ctx, d_vocab=50_257, act_fn="gelu_new",
        normalization_type="LN", seed=0, device="cpu",
    )  # fmt: skip
    model = HookedTransformer(config).eval()
    generator, d = torch.Generator().manual_seed(0), config.d_model
    draw = lambda *shape: torch.randn(*shape, generator=generator) / d**0.5  # noqa: E731
    bases = [
        Transcoder(
            layer=layer, W_enc=draw(d, n_features), b_enc=torch.zeros(n_features), W_dec=draw(n_features, d),
            b_dec=torch.zeros(d), hook_in=f"blocks.{layer}.ln2.hook_normalized",
            hook_out=f"blocks.{layer}.hook_mlp_out", name="random", k=active,
        )
        for layer in range(config.n_layers)
    ]  # fmt: skip
    return model, bases


def peak() -> int:
    """Most bytes that the process has held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


if __name__ == "__main__":
    typer.run(main)
