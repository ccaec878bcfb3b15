"""What does an attribution graph cost against circuit-tracer, and is it the same graph?

    python -m benchmarks.against_circuit_tracer

circuit-tracer asks for other versions of transformers, so it runs in a virtual environment of its own, which pip makes
on the first call and which is kept in `--home`. Random model, transcoders and prompt go there as files. Both sides
answer with the whole matrix: one row for every active feature and for the ten likeliest logits. Matrices are compared
on the nodes that both have (features, errors, tokens, logits; the other side has none for positions, biases and the
MLP outputs of position 0). Then each is timed in turn, both on one thread, the other side at the batch size that is
fastest for it. Seconds are CPU seconds from tokens to graph, without imports and loading.
"""

import json
import os
import subprocess
import sys
import tempfile
import venv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import IO, Annotated, Any

import torch
import typer
from safetensors.torch import load_file, save_file
from torch import Tensor

from benchmarks.counting import peak_memory
from benchmarks.graphs import Case, descent_flops, random_case
from benchmarks.measure import matmul_rate, timed
from benchmarks.table import number, spread
from mechkit.graphs.engine.attribution import Attribution
from mechkit.graphs.engine.frozen import FrozenModel
from mechkit.graphs.engine.growth import Grown, grow
from mechkit.graphs.engine.reading import mlp_input
from mechkit.graphs.engine.roots import logit_roots
from mechkit.graphs.nodes import Node

PACKAGES = ("circuit-tracer==0.5.0", f"torch=={torch.__version__.split('+')[0]}")
"""What pip puts into the other environment; the same torch as here, so that products cost the same."""
BATCHES = (16, 32, 64, 128, 256, 512)
"""Batch sizes that are tried for the other side; 512 is its default."""
ROUNDS = 5
"""Timed rounds of both sides in turn."""
CLOSE = 1e-5
"""Largest difference of an entry, relative to the largest of its row, that counts as agreement."""
N_LOGITS = 10
"""Logits that are explained."""
CASES = {
    "small": ({"n_layers": 4, "d_model": 256, "n_tokens": 16, "per_token": 60}, 6.0),
    "gpt2": ({"n_layers": 12, "d_model": 768, "n_tokens": 8, "per_token": 75}, 9.0),
}
"""Shape of each case, and how many times our seconds the other side is to take, at least."""
HEAD = (
    "case", "features", "largest difference", "mechkit s (min to max)", "circuit-tracer s (min to max)",
    "at its best batch", "times", "wanted", "mechkit pruned s", "circuit-tracer pruned s", "floor s", "mechkit MiB",
    "circuit-tracer MiB by batch size",
)  # fmt: skip


def main(
    home: Annotated[Path, typer.Option(help="Folder of the other virtual environment.")] = Path("runs/circuit_tracer"),
    only: Annotated[str | None, typer.Option(help=f"One case of {', '.join(CASES)}.")] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Timed rounds of both sides.")] = ROUNDS,
    batch: Annotated[
        list[int] | None, typer.Option(help="A batch size to try for the other side; all, if none.")
    ] = None,
) -> None:
    """Run both on the same model, transcoders and prompt, compare, print a table. Exit status 1 where they differ."""
    if only is not None and only not in CASES:
        raise typer.BadParameter(f"no case '{only}'; there are {', '.join(CASES)}")
    torch.set_num_threads(1)
    python = environment(home)
    rows = [HEAD, ["---"] * len(HEAD)]
    for shape, wanted in [CASES[only]] if only else CASES.values():
        rows.append(measured(python, with_biases(random_case("cpu", **shape)), wanted, rounds, batch or BATCHES))
    print("\n".join(f"| {' | '.join(row)} |" for row in rows))


def environment(home: Path) -> Path:
    """The Python of the other environment, made with pip where it is not there yet."""
    python = home / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")
    if not (home / ".whole").exists():
        print(f"making a virtual environment in '{home}' with {', '.join(PACKAGES)}; minutes", file=sys.stderr)
        venv.create(home, with_pip=True, clear=True)
        subprocess.run([python, "-m", "pip", "install", "-q", *PACKAGES], check=True)
        (home / ".whole").touch()
    return python


def with_biases(case: Case) -> Case:
    """The case with random numbers for the model's biases, which are zero at first, so that they count."""
    generator = torch.Generator().manual_seed(1)
    model: Any = case.model
    for name, value in model.named_parameters():
        if name.rpartition(".")[2].startswith("b"):
            value.data = 0.1 * torch.randn(value.shape, generator=generator)
    return case


# --- the two sides


def engine_of(case: Case, logits: Sequence[int]) -> Attribution:
    """What rows are computed from; position 0 is taken for a BOS, as on the other side."""
    frozen = FrozenModel.on(case.model, case.prompts, [mlp_input(basis) for basis in case.bases])
    return Attribution(frozen, case.bases, logit_roots(frozen, logits, centred=True), bos=True)


@torch.no_grad()
def ours(case: Case, logits: Sequence[int]) -> Grown:
    """The whole matrix, from the prompt."""
    engine = engine_of(case, logits)
    return grow(engine, engine.frozen.logits.softmax(-1)[torch.tensor(logits)])


@torch.no_grad()
def likeliest(case: Case) -> list[int]:
    """The tokens that are explained."""
    model: Any = case.model
    return model(case.prompts.tokens)[0, -1].topk(N_LOGITS).indices.tolist()


class Theirs:
    """The other side: a process that answers orders."""

    def __init__(self, python: Path, folder: Path) -> None:
        script = Path(__file__).with_name("circuit_tracer_peer.py")
        environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        self.folder = folder
        self.process = subprocess.Popen([python, script, folder], text=True, env=environment, **pipes)
        self.version = self._answer()["version"]

    def run(self, batch_size: int, *, prune: bool = False, write: bool = False) -> dict[str, float]:
        """CPU seconds, peak bytes and number of features of one graph; `write` leaves the matrix in the folder."""
        stdin: IO[str] = self.process.stdin  # pyright: ignore[reportAssignmentType]
        stdin.write(json.dumps({"batch_size": batch_size, "prune": prune, "write": write}) + "\n")
        stdin.flush()
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        line = self.process.stdout.readline()  # pyright: ignore[reportOptionalMemberAccess]
        while line and not line.startswith("{"):
            line = self.process.stdout.readline()  # pyright: ignore[reportOptionalMemberAccess]
        if not line:
            said = self.process.communicate()[1].strip().splitlines() or ["no reason given"]
            raise SystemExit(f"circuit-tracer failed: {said[-1]}")
        return json.loads(line)

    def __enter__(self) -> "Theirs":
        return self

    def __exit__(self, *_) -> None:
        self.process.stdin.close()  # pyright: ignore[reportOptionalMemberAccess]
        self.process.wait()


def hand_over(case: Case, folder: Path, logits: Sequence[int]) -> None:
    """Write the model (its settings and weights), the transcoders in circuit-tracer's format, and the prompt."""
    model: Any = case.model
    weights = {name: value.detach().contiguous() for name, value in model.named_parameters()}
    save_file(weights, folder / "model.safetensors")
    plain = {k: v for k, v in model.cfg.to_dict().items() if isinstance(v, str | int | float | bool)}
    (folder / "model.json").write_text(json.dumps(plain))
    for basis in case.bases:
        tensors = {
            "W_enc": basis.W_enc.T, "W_dec": basis.W_dec, "b_enc": basis.b_enc, "b_dec": basis.b_dec,
            "activation_function.threshold": torch.zeros_like(basis.b_enc),
        }  # fmt: skip
        save_file(
            {name: value.contiguous() for name, value in tensors.items()}, folder / f"layer_{basis.layer}.safetensors"
        )
    prompt = {"tokens": case.prompts.tokens[0].contiguous(), "logits": torch.tensor(logits)}
    save_file(prompt, folder / "prompt.safetensors")


# --- comparing


@dataclass(frozen=True)
class Agreement:
    """How two matrices compare."""

    shared: int
    """Features that both have."""
    apart: int
    """Features that one has and the other has not."""
    difference: float
    """Largest difference of an entry, relative to the largest of its row."""


def compared(grown: Grown, n_layers: int, folder: Path) -> Agreement:
    """The two matrices on the rows and columns that both have."""
    found = load_file(folder / "theirs.safetensors")
    features, theirs = [("feature", *place) for place in found["features"].tolist()], found["matrix"]
    n_pos = (len(theirs) - len(features) - N_LOGITS) // (n_layers + 1)
    errors = [("error", layer, pos, None) for layer in range(n_layers) for pos in range(n_pos)]
    tokens = [("token", -1, pos, None) for pos in range(n_pos)]
    logits = [("logit", n_layers, n_pos - 1, i) for i in range(N_LOGITS)]
    own_columns, columns = shared([key(node) for node in grown.matrix.sources], [*features, *errors, *tokens])
    own_rows, rows = shared([key(node) for node in grown.targets], [*features, *errors, *tokens, *logits])
    mine, other = grown.rows.dense()[own_rows][:, own_columns], theirs[rows][:, columns]
    relative = (mine - other).abs().amax(1) / other.abs().amax(1)
    n_shared = len(own_rows) - N_LOGITS
    return Agreement(n_shared, grown.matrix.n_features + len(features) - 2 * n_shared, float(relative.max()))


def key(node: Node) -> tuple:
    """What the two sides know a node by."""
    number = {"feature": node.index, "logit": node.root}.get(node.kind)
    return node.kind, node.layer, node.pos, number


def shared(ours: Sequence[tuple], theirs: Sequence[tuple]) -> tuple[Tensor, Tensor]:
    """The places of what both have, on each side."""
    places = {key: place for place, key in enumerate(theirs)}
    both = [(i, places[key]) for i, key in enumerate(ours) if key in places]
    return tuple(torch.tensor(both).T)  # pyright: ignore[reportReturnType]


# --- timing


def measured(python: Path, case: Case, wanted: float, rounds: int, batches: Sequence[int]) -> list[str]:
    """One row of the table. Stops the program where the two sides disagree."""
    with tempfile.TemporaryDirectory() as name:
        folder, logits = Path(name), likeliest(case)
        hand_over(case, folder, logits)
        grown, own_peak = peak_memory(lambda: ours(case, logits), "cpu")
        with Theirs(python, folder) as theirs:
            scanned = {size: theirs.run(size, write=size == batches[0]) for size in batches}
            agreed = compared(grown, len(case.bases), folder)
            if agreed.difference > CLOSE:
                raise SystemExit(f"{case.name}: matrices differ by {agreed.difference:.1g} of the largest of a row")
            del grown
            best = min(scanned, key=lambda size: scanned[size]["busy"])
            times = [(timed(lambda: ours(case, logits), "cpu").busy, theirs.run(best)["busy"]) for _ in range(rounds)]
            pruned = timed(lambda: ours(case, logits).matrix.prune(0.8, 0.98), "cpu").busy
            theirs_pruned = theirs.run(best, prune=True)["busy"]
    ratio = median(b / a for a, b in times)
    peaks = ", ".join(f"{size}: {number(one['peak'] / 2**20)}" for size, one in scanned.items())
    mine, other = zip(*times, strict=True)
    return [
        case.name, f"{agreed.shared:,} ({agreed.apart} apart)", f"{agreed.difference:.0e}", spread(mine),
        spread(other), str(best), f"{ratio:.1f}", f"≥ {wanted:g}: {'met' if ratio >= wanted else 'NOT met'}",
        number(pruned), number(theirs_pruned), number(floor(case, logits)), number(own_peak / 2**20), peaks,
    ]  # fmt: skip


def floor(case: Case, logits: Sequence[int]) -> float:
    """Seconds that the FLOPs of the descents take at the rate of a large matrix product."""
    return descent_flops(engine_of(case, logits)) / matmul_rate("cpu")


if __name__ == "__main__":
    typer.run(main)
