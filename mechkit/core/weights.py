"""What tells the weights of one model from those of another."""

import hashlib

import torch

REBUILT = ("mask", "IGNORE", "rotary_sin", "rotary_cos")
"""Last parts of the names of buffers that a model makes itself."""


@torch.no_grad()
def weights_hash(module: torch.nn.Module) -> str:
    """sha256 of a module's parameters and buffers: names, dtypes, shapes and bytes, wherever they lie.

    Cost: one read of every weight.
    """
    found = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        if name.rsplit(".", 1)[-1] in REBUILT:
            continue
        found.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        found.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return found.hexdigest()
