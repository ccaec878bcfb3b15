"""Training that can stop and go on: parameters, optimizer and random state in one safetensors file.

A loop asks `resume` where to start and calls `save` now and then; a run that was cut off and resumed ends with
the same weights, bit for bit, as one that was not.
"""

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from mechkit.core.files import write_atomic


def save_state(
    path: Path,
    step: int,
    tensors: Mapping[str, Tensor],
    optimizer: torch.optim.Optimizer,
    generator: torch.Generator,
) -> None:
    """Write everything the loop needs to go on after `step` steps; the folder of `path` is made."""
    state = {f"value.{name}": tensor.detach() for name, tensor in tensors.items()}
    for index, moments in optimizer.state_dict()["state"].items():
        state |= {f"optimizer.{index}.{key}": value for key, value in moments.items()}
    state |= {"generator": generator.get_state(), "step": torch.tensor(step)}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, save({key: value.contiguous() for key, value in state.items()}))


def resume(
    path: Path | None,
    tensors: Mapping[str, Tensor],
    optimizer: torch.optim.Optimizer,
    generator: torch.Generator,
) -> int:
    """Put back what `save_state` wrote, in place, and return how many steps it had done (0 without a file).

    Raises ValueError where the file is damaged or holds another run's tensors.
    """
    if path is None or not path.is_file():
        return 0
    try:
        state = load(path.read_bytes())
    except SafetensorError as error:
        raise ValueError(f"'{path}' is damaged ({error}); delete it to start again") from error
    values = _part(state, "value.")
    found = {name: tuple(tensor.shape) for name, tensor in values.items()}
    wanted = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if found != wanted:
        odd = sorted(set(found.items()) ^ set(wanted.items()))
        raise ValueError(f"'{path}' is of another run (differs in {odd[:3]}); delete it to start again")
    with torch.no_grad():
        for name, tensor in tensors.items():
            tensor.copy_(values[name])
    _restore_optimizer(optimizer, _part(state, "optimizer."))
    generator.set_state(state["generator"])
    return int(state["step"])


def _restore_optimizer(optimizer: torch.optim.Optimizer, flat: Mapping[str, Tensor]) -> None:
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in flat.items():
        index, name = key.split(".", 1)
        state.setdefault(int(index), {})[name] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def _part(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
