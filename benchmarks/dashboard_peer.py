"""sae_dashboard's side of `dashboard.py`: run by the Python of an environment with transformer-lens below 3."""

# pyright: reportMissingImports=false, reportAttributeAccessIssue=false, reportCallIssue=false
import json
import sys
import time
from dataclasses import fields
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from sae_dashboard.sae_vis_data import SaeVisConfig
from sae_dashboard.sae_vis_runner import SaeVisRunner
from sae_lens import SAE, HookedSAETransformer
from safetensors.torch import load_file
from transformer_lens import HookedTransformerConfig


def main(folder: Path) -> None:
    """Read the files, run, and write how often each feature fired and the CPU seconds of the run."""
    settings = json.loads((folder / "model.json").read_text())
    known = {field.name for field in fields(HookedTransformerConfig)}
    settings = {key: value for key, value in settings.items() if key in known}
    model = HookedSAETransformer(HookedTransformerConfig(**settings | {"device": "cpu", "dtype": torch.float32})).eval()
    weights = load_file(folder / "model.safetensors")
    assert weights.keys() == dict(model.named_parameters()).keys(), "the two versions name other parameters"
    model.load_state_dict(weights, strict=False)  # masks and tables of angles are made by the settings
    sae = SAE.load_from_disk(folder / "sae", device="cpu").eval()
    tokens = torch.from_numpy(np.load(folder / "tokens.npy"))
    config = SaeVisConfig(hook_point=sae.cfg.metadata.hook_name, features=list(range(sae.cfg.d_sae)), device="cpu")
    busy = time.process_time()
    with torch.no_grad():
        found = SaeVisRunner(config).run(encoder=sae, model=model, tokens=tokens)
    busy = time.process_time() - busy
    data = [found.feature_data_dict[feature] for feature in range(sae.cfg.d_sae)]
    n = [int(sum(one.acts_histogram_data.bar_heights)) for one in data]
    answer = {"n_firings": n, "busy": busy, "version": version("sae-dashboard")}
    (folder / "answer.json").write_text(json.dumps(answer))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
