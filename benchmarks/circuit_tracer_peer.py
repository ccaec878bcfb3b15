"""circuit-tracer's side of `against_circuit_tracer.py`: run by the Python of an environment that has it.

Reads orders from standard input, one JSON object a line: a batch size, whether to prune, whether to write the graph
down. Answers each with a line: CPU seconds, peak bytes above what was held before, number of features.
"""

# pyright: reportMissingImports=false, reportAttributeAccessIssue=false, reportCallIssue=false, reportArgumentType=false
import ctypes
import gc
import json
import logging
import math
import sys
import time
from dataclasses import fields
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from circuit_tracer.attribution.attribute import attribute
from circuit_tracer.graph import prune_graph
from circuit_tracer.replacement_model.replacement_model_transformerlens import TransformerLensReplacementModel
from circuit_tracer.transcoder.activation_functions import JumpReLU
from circuit_tracer.transcoder.single_layer_transcoder import SingleLayerTranscoder, TranscoderSet
from safetensors.torch import load_file, save_file
from transformer_lens import HookedTransformerConfig


class Tokenizer:
    """What circuit-tracer asks of a tokenizer, for a prompt of token ids that starts with a special token."""

    def __init__(self, special: int, vocab_size: int) -> None:
        self.all_special_ids, self.bos_token_id = [special], special
        self.pad_token_id = self.eos_token_id = special
        self.padding_side, self.vocab_size = "right", vocab_size

    def decode(self, ids) -> str:
        """The ids as text."""
        return str(ids)


def main(folder: Path) -> None:
    """Load model and transcoders, then answer orders until there are no more."""
    torch.set_num_threads(1)
    logging.getLogger().setLevel(logging.ERROR)
    prompt = load_file(folder / "prompt.safetensors")
    model = loaded(folder, int(prompt["tokens"][0]))
    say({"version": version("circuit-tracer")})
    for line in sys.stdin:
        order = json.loads(line)
        held = reset_peak()
        busy = time.process_time()
        graph = attribute(prompt["tokens"], model, attribution_targets=prompt["logits"], batch_size=order["batch_size"])
        if order["prune"]:
            prune_graph(graph)
        busy, peak = time.process_time() - busy, resident("VmHWM") - held
        if order["write"]:
            found = {"features": graph.active_features, "matrix": graph.adjacency_matrix}
            save_file({name: value.contiguous() for name, value in found.items()}, folder / "theirs.safetensors")
        say({"busy": busy, "peak": peak, "n_features": len(graph.active_features)})
        del graph


def loaded(folder: Path, special: int) -> TransformerLensReplacementModel:
    """The model with its transcoders in place."""
    settings = json.loads((folder / "model.json").read_text())
    known = {field.name for field in fields(HookedTransformerConfig)}
    settings: dict[str, Any] = {key: value for key, value in settings.items() if key in known}
    config = HookedTransformerConfig(**settings | {"device": "cpu"})
    model = TransformerLensReplacementModel.from_config(config, transcoders(folder, config.n_layers)).eval()
    weights = load_file(folder / "model.safetensors")
    renamed = {name.replace(".mlp.", ".mlp.old_mlp."): value for name, value in weights.items()}
    renamed = {name.replace("unembed.", "unembed.old_unembed."): value for name, value in renamed.items()}
    own = {name for name, _ in model.named_parameters() if not name.startswith("transcoders.")}
    if own != set(renamed):
        raise ValueError(f"weights and model differ in {sorted(own ^ set(renamed))[:3]}")
    model.load_state_dict(renamed, strict=False)
    model.tokenizer = Tokenizer(special, config.d_vocab)
    return model


def transcoders(folder: Path, n_layers: int) -> TranscoderSet:
    """The transcoders in circuit-tracer's own files."""
    found = {}
    for layer in range(n_layers):
        tensors = load_file(folder / f"layer_{layer}.safetensors")
        n_features, d_model = tensors["W_enc"].shape
        gate = JumpReLU(tensors["activation_function.threshold"])
        found[layer] = SingleLayerTranscoder(d_model, n_features, gate, layer, dtype=torch.float32, device="cpu")
        found[layer].load_state_dict(tensors)
    return TranscoderSet(found, "ln2.hook_normalized", "hook_mlp_out", scan="random")


def reset_peak() -> float:
    """Bytes resident after what is free was given back and the peak set to it; NaN where Linux's files are not."""
    gc.collect()
    try:
        ctypes.CDLL("libc.so.6").malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
    except (OSError, AttributeError):
        return math.nan
    return resident("VmRSS")


def resident(field: str) -> float:
    """Bytes that Linux gives for the process."""
    status = Path("/proc/self/status")
    lines = dict(line.split(":", 1) for line in status.read_text().splitlines()) if status.exists() else {}
    return float(lines[field].split()[0]) * 1024 if field in lines else math.nan


def say(answer: dict) -> None:
    """One line to whoever asks."""
    print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
