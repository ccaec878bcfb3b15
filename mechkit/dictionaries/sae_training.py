"""SAEs and transcoders trained by SAELens on stored activations, and written in its format.

`train_sae` and `train_mlp_transcoder` hand SAELens's `SAETrainer` batches drawn from activations in memory (or mapped
from disk) and write a folder that `SAE.load_from_disk` reads. Both keep the batch's `l0 * rows` largest activations
while training (BatchTopK) and are stored as JumpReLU. SAELens has no transcoder to train; `MlpTranscoder` is its
BatchTopK SAE with an output of its own.

Training goes on from SAELens's last checkpoint; a folder that is there is complete.

    rows = read_rows(model, ["blocks.1.hook_resid_post"], tokens)
    train_sae("saes/one", rows["blocks.1.hook_resid_post"], Plan(d_features=32, l0=4, n_rows=2000, batch=100))
    load_sae("saes/one", model).cfg.architecture()  # 'jumprelu'
"""

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from sae_lens import BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig, JumpReLUTranscoderConfig
from sae_lens.config import SAETrainerConfig
from sae_lens.saes.sae import TrainStepInput
from sae_lens.training.sae_trainer import SAETrainer
from safetensors.torch import load_file, save_file
from torch import Tensor

from mechkit.dictionaries.loading import CONFIG, WEIGHTS

N_NORM = 20
"""Batches that SAELens measures the activations' size on."""


@dataclass(frozen=True)
class Plan:
    """How a dictionary is trained."""

    d_features: int
    """How many features it has."""
    l0: float | int
    """Mean number of active features per row."""
    n_rows: int
    """Rows of activations it is trained on, drawn with replacement; fewer than some 300 batches leave SAELens's running
    threshold, of which each batch is a hundredth, too low, and the stored dictionary denser than `l0`."""
    batch: int = 1024
    """Rows per step."""
    learning_rate: float = 4e-3
    """Adam's, after a short warm-up, falling to zero over the last two fifths."""
    dead_after: int = 50
    """Steps without firing after which a feature is given the rest of others' errors to explain."""
    seed: int = 0
    """Of the first weights and of the rows that are drawn."""
    n_checkpoints: int = 3
    """How often the state is written while training."""


@dataclass(frozen=True)
class Side:
    """Activations at one place, with the shift and the factor that training sees them under."""

    rows: Float[Tensor, "row d"]
    """The activations themselves."""
    centre: Float[Tensor, "*d"] = field(default_factory=lambda: torch.zeros(()))
    """What is taken off them."""
    scale: float = 1.0
    """What they are divided by then."""

    @classmethod
    def standard(cls, rows: Float[Tensor, "row d"], seed: int) -> "Side":
        """Centred, and divided by one number so that their variance is 1, as measured on some of the rows."""
        some = rows[torch.randint(len(rows), (10_000,), generator=torch.Generator().manual_seed(seed))].float()
        centre = some.mean(0)
        return cls(rows, centre, float((some - centre).square().mean().sqrt()))

    def __getitem__(self, chosen: Int[Tensor, "batch"]) -> Float[Tensor, "batch d"]:
        return (self.rows[chosen].float() - self.centre) / self.scale


def drawn(sides: Sequence[Side], batch: int, seed: int, start: int = 0) -> Iterator[Float[Tensor, "batch d"]]:
    """Endless batches of rows, those of all sides beside each other; each depends on the seed and its number alone."""
    number = start
    while True:
        generator = torch.Generator().manual_seed((seed << 32) + number)
        chosen = torch.randint(len(sides[0].rows), (batch,), generator=generator)
        yield torch.cat([side[chosen] for side in sides], dim=1)
        number += 1


def train_sae(
    path: str | Path,
    rows: Float[Tensor, "row d"],
    plan: Plan,
    *,
    metadata: Mapping[str, Any] | None = None,
    runs: Path | None = None,
    device: str = "cpu",
) -> None:
    """Train a BatchTopK SAE on `rows` and write it to the folder `path`, in float16, as a JumpReLU SAE.

    `metadata` (hook, model, weights hash) is stored with it; `runs` is where SAELens's checkpoints go, none without
    it. The global random state is left as it was. Cost: plan.n_rows forward and backward passes of the SAE.
    """
    cfg = BatchTopKTrainingSAEConfig(
        d_in=rows.shape[1],
        d_sae=plan.d_features,
        k=float(plan.l0),
        normalize_activations="expected_average_only_in",
        device=device,
    )
    _store(_fitted(BatchTopKTrainingSAE, cfg, [Side(rows)], plan, metadata or {}, runs), Path(path))


def train_mlp_transcoder(
    path: str | Path,
    x: Float[Tensor, "row d_in"],
    y: Float[Tensor, "row d_out"],
    plan: Plan,
    *,
    metadata: Mapping[str, Any] | None = None,
    runs: Path | None = None,
    device: str = "cpu",
) -> None:
    """Train a BatchTopK transcoder from `x`, inputs of an MLP, to `y`, its outputs; else as `train_sae`.

    Inputs and outputs are centred and scaled while training, which is folded into the stored weights.
    """
    cfg = MlpTranscoderConfig(
        d_in=x.shape[1],
        d_out=y.shape[1],
        d_sae=plan.d_features,
        k=float(plan.l0),
        apply_b_dec_to_input=False,
        device=device,
    )
    sides = [Side.standard(values, plan.seed) for values in (x, y)]
    _store(_fitted(MlpTranscoder, cfg, sides, plan, metadata or {}, runs), Path(path), sides)


@dataclass
class MlpTranscoderConfig(BatchTopKTrainingSAEConfig):
    """Settings of a transcoder in training."""

    d_out: int = 0
    """Width of what is rebuilt."""

    @classmethod
    def architecture(cls) -> str:
        """What SAELens calls it."""
        return "batchtopk_transcoder"

    def get_inference_config_class(self):
        """The kind it is stored as."""
        return JumpReLUTranscoderConfig


class MlpTranscoder(BatchTopKTrainingSAE):
    """SAELens's BatchTopK SAE on rows of inputs and outputs side by side: reads the first, rebuilds the second."""

    cfg: MlpTranscoderConfig  # pyright: ignore[reportIncompatibleVariableOverride]

    def __init__(self, cfg: MlpTranscoderConfig):
        super().__init__(cfg)
        self.mse_loss_fn = lambda rebuilt, rows: (rebuilt - self._outputs(rows)).square()

    def initialize_weights(self) -> None:
        """Reading and writing directions of their own, in random directions."""
        super().initialize_weights()
        d_out, d_features = self.cfg.d_out, self.cfg.d_sae
        writes = torch.nn.functional.normalize(torch.randn(d_features, d_out), dim=1) * (
            self.cfg.decoder_init_norm or 1
        )
        self.W_dec = torch.nn.Parameter(writes.to(self.device, self.dtype))
        self.b_dec = torch.nn.Parameter(torch.zeros(d_out, dtype=self.dtype, device=self.device))

    def process_sae_in(self, sae_in: Tensor) -> Tensor:
        """The inputs, without the outputs beside them."""
        return sae_in[..., : self.cfg.d_in].to(self.dtype)

    def calculate_aux_loss(self, step_input: TrainStepInput, **found) -> dict[str, Tensor]:
        """What silent features could add to the outputs."""
        return super().calculate_aux_loss(
            step_input=replace(step_input, sae_in=self._outputs(step_input.sae_in)), **found
        )

    def _outputs(self, rows: Tensor) -> Tensor:
        return rows[..., self.cfg.d_in :]


def _fitted(kind, cfg, sides: Sequence[Side], plan: Plan, metadata: Mapping[str, Any], runs: Path | None):
    """The trained SAE, from SAELens's last checkpoint on where there is one."""
    for key, value in metadata.items():
        cfg.metadata[key] = value
    with torch.random.fork_rng():
        torch.manual_seed(plan.seed)
        sae = kind(cfg)
    trainer = SAETrainer(_trainer_settings(plan, runs, cfg.device), sae, iter(()))
    last = _last_checkpoint(runs)
    if last is not None:
        sae.load_weights_from_checkpoint(last)
        trainer.load_trainer_state(last)
        trainer.checkpoint_thresholds = [n for n in trainer.checkpoint_thresholds if n > trainer.n_training_samples]
    scaled = cfg.normalize_activations != "none"
    start = trainer.n_training_samples // plan.batch + (N_NORM if scaled and last is not None else 0)
    trainer.data_provider = drawn(sides, plan.batch, plan.seed, start)
    with torch.enable_grad():
        return trainer.fit()


def _trainer_settings(plan: Plan, runs: Path | None, device: str) -> SAETrainerConfig:
    n_steps = plan.n_rows // plan.batch
    return SAETrainerConfig(
        total_training_samples=n_steps * plan.batch,
        train_batch_size_samples=plan.batch,
        lr=plan.learning_rate,
        lr_end=plan.learning_rate,
        lr_warm_up_steps=min(50, n_steps // 10),
        lr_decay_steps=2 * n_steps // 5,
        dead_feature_window=plan.dead_after,
        device=device,
        n_checkpoints=0 if runs is None else plan.n_checkpoints,
        checkpoint_path=None if runs is None else str(runs),
        n_batches_for_norm_estimate=N_NORM,
    )


def _last_checkpoint(runs: Path | None) -> Path | None:
    """The folder of the most rows trained on; one without SAELens's last file was cut off while written."""
    found = [] if runs is None else [path.parent for path in runs.glob("*/activation_scaler.json")]
    return max((path for path in found if path.name.isdigit()), key=lambda path: int(path.name), default=None)


def _store(sae, path: Path, sides: Sequence[Side] = ()) -> None:
    """Write what SAELens makes of a trained SAE, in float16, in one move; `sides` are folded into a transcoder."""
    unfinished = path.with_name(f".{path.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    sae.save_inference_model(unfinished)
    tensors = load_file(unfinished / WEIGHTS)
    if sides:
        tensors = unscaled(tensors, *sides)
    save_file({name: t.to(torch.float16).contiguous() for name, t in tensors.items()}, unfinished / WEIGHTS)
    cfg = json.loads((unfinished / CONFIG).read_text()) | {"device": "cpu"}
    (unfinished / CONFIG).write_text(json.dumps(cfg, indent=1) + "\n")
    shutil.rmtree(path, ignore_errors=True)
    unfinished.rename(path)


def unscaled(tensors: Mapping[str, Tensor], x: Side, y: Side) -> dict[str, Tensor]:
    """The same transcoder on inputs and outputs as they come; writing directions keep their length, activations are in
    the output's unit."""
    reads = tensors["W_enc"] / x.scale
    return {
        "W_enc": y.scale * reads,
        "b_enc": y.scale * (tensors["b_enc"] - x.centre @ reads),
        "W_dec": tensors["W_dec"],
        "b_dec": y.scale * tensors["b_dec"] + y.centre,
        "threshold": y.scale * tensors["threshold"],
    }
