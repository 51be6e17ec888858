"""What a run remembers besides its weights, as tensors and JSON: optimizer and random generators.

Bit for bit: a float survives JSON because Python writes the shortest text that reads as the same float.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

import numpy
import torch
from torch import Tensor, nn

from bmpeft.errors import BmpeftError

_SEPARATOR = "|"


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that train, by name; a tied one once."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def learned_statistics(model: nn.Module) -> tuple[str, ...]:
    """Names of the buffers of BatchNorm layers that train: no parameters, but learned all the same."""
    return tuple(
        f"{prefix}.{name}"
        for prefix, module in model.named_modules()
        if isinstance(module, nn.BatchNorm2d) and any(p.requires_grad for p in module.parameters())
        for name, _ in module.named_buffers()
    )


def copies(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies on the CPU."""
    return {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in tensors.items()}


def set_tensors(parameters: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> None:
    """Write values into parameters in place; all of them and nothing else.

    Raises:
        BmpeftError: names, shapes or types differ.
    """
    expected = {name: (tensor.shape, tensor.dtype) for name, tensor in parameters.items()}
    given = {name: (tensor.shape, tensor.dtype) for name, tensor in values.items()}
    differing = sorted(name for name in expected.keys() | given.keys() if expected.get(name) != given.get(name))
    if differing:
        raise BmpeftError(f"checkpoint: its tensors are not the model's: {', '.join(differing[:3])}")
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(values[name])


def optimizer_tensors(optimizer: torch.optim.Optimizer, parameters: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
    """What the optimizer remembers: ``name|exp_avg``, ``name|step`` and so on."""
    return copies(
        {
            f"{name}{_SEPARATOR}{key}": value
            for name, parameter in parameters.items()
            for key, value in optimizer.state.get(parameter, {}).items()
        }
    )


def optimizer_rates(optimizer: torch.optim.Optimizer) -> list[float]:
    """The learning rate of each parameter group."""
    return [float(group["lr"]) for group in optimizer.param_groups]


def set_optimizer(
    optimizer: torch.optim.Optimizer,
    parameters: Mapping[str, nn.Parameter],
    tensors: Mapping[str, Tensor],
    rates: list[float],
) -> None:
    """Give an optimizer of the same parameters its memory back."""
    memory: dict[str, dict[str, Tensor]] = {}
    for full_name, tensor in tensors.items():
        name, _, key = full_name.rpartition(_SEPARATOR)
        memory.setdefault(name, {})[key] = tensor
    names = {id(parameter): name for name, parameter in parameters.items()}
    order = [names[id(parameter)] for group in optimizer.param_groups for parameter in group["params"]]
    state = optimizer.state_dict()
    state["state"] = {index: memory[name] for index, name in enumerate(order) if name in memory}
    for group, rate in zip(state["param_groups"], rates, strict=True):
        group["lr"] = rate
    optimizer.load_state_dict(state)


def random_tensors() -> dict[str, Tensor]:
    """States of torch's generators, the CPU's and each GPU's."""
    states = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        states |= {f"cuda:{index}": state for index, state in enumerate(torch.cuda.get_rng_state_all())}
    return states


def random_content() -> dict[str, Any]:
    """States of the generators of Python and numpy, fit for JSON."""
    kind, keys, position, has_gauss, gauss = numpy.random.get_state(legacy=True)
    return {"python": random.getstate(), "numpy": [kind, [int(key) for key in keys], position, has_gauss, gauss]}


def set_random(tensors: Mapping[str, Tensor], content: Mapping[str, Any]) -> None:
    """Put all generators back; states of GPUs that this machine does not have are left out."""
    version, numbers, gauss = content["python"]
    random.setstate((version, tuple(numbers), gauss))
    kind, keys, position, has_gauss, cached = content["numpy"]
    numpy.random.set_state((kind, numpy.array(keys, dtype=numpy.uint32), position, has_gauss, cached))
    torch.set_rng_state(tensors["cpu"])
    for index in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        if f"cuda:{index}" in tensors:
            torch.cuda.set_rng_state(tensors[f"cuda:{index}"], index)
