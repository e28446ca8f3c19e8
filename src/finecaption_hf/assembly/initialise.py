"""Weights that no part gives, from the model's own initialisation, a few modules at a time."""

import zlib
from collections.abc import Iterator

import torch
from torch import nn
from transformers import PreTrainedModel

# Prefix of its names, the model whose initialisation counts, module, whether with all below it.
_Unit = tuple[str, PreTrainedModel, nn.Module, bool]


def initialised(model: PreTrainedModel, names: set[str], seed: int) -> Iterator[tuple[str, torch.Tensor]]:
    """Tensors of a model on the meta device, as its `_init_weights` makes them.

    Each block of a tower is made and given away before the next. The seed of a block depends on its name alone, so
    what is drawn for it does not depend on which other parts there are.

    Args:
        model (`PreTrainedModel`): on the meta device; unchanged afterwards.
        names (`set[str]`): tensors that are wanted.
        seed (`int`): of all random numbers.

    Yields:
        name and tensor, in float32.
    """
    for (prefix, owner, module, is_block), wanted in _wanted_units(model, names):
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.manual_seed(seed ^ zlib.crc32(prefix.encode()))
            made = _materialise(module, recurse=is_block)
            _initialise(module, owner, recurse=is_block)
            tensors = {name: module.get_parameter(name.removeprefix(prefix)).data for name in wanted}
        for name in wanted:
            yield name, tensors.pop(name)
        for holder, name, parameter in made:
            setattr(holder, name, parameter)


def initialised_order(model: PreTrainedModel, names: set[str]) -> list[str]:
    """The order in which `initialised` gives tensors."""
    return [name for _, wanted in _wanted_units(model, names) for name in wanted]


def _wanted_units(model: PreTrainedModel, names: set[str]) -> list[tuple[_Unit, list[str]]]:
    found = []
    for unit in _units(model, "", model):
        prefix, _, module, is_block = unit
        own = module.named_parameters(recurse=is_block, remove_duplicate=False)
        wanted = [prefix + name for name, _ in own if prefix + name in names]
        if wanted:
            found.append((unit, wanted))
    return found


def _units(module: nn.Module, prefix: str, owner: PreTrainedModel) -> Iterator[_Unit]:
    """Inner ones first.

    A block is what holds no list of others; initialisation may reach from a module to its children, so a block is
    initialised as a whole.
    """
    if isinstance(module, PreTrainedModel):
        owner = module
    holds_list = any(isinstance(inner, (nn.ModuleList, nn.Sequential)) for inner in module.modules())
    if holds_list or isinstance(module, PreTrainedModel):
        for name, child in module.named_children():
            yield from _units(child, f"{prefix}{name}.", owner)
    yield prefix, owner, module, not (holds_list or isinstance(module, PreTrainedModel))


def _materialise(module: nn.Module, recurse: bool) -> list[tuple[nn.Module, str, nn.Parameter]]:
    """Give parameters memory; returns what was there before."""
    before: list[tuple[nn.Module, str, nn.Parameter]] = []
    for holder in module.modules() if recurse else (module,):
        for name, parameter in list(holder.named_parameters(recurse=False, remove_duplicate=False)):
            before.append((holder, name, parameter))
            # Not a number: what initialisation leaves out shows.
            empty = torch.full(parameter.shape, float("nan"), dtype=torch.float32)
            setattr(holder, name, nn.Parameter(empty, requires_grad=False))
    return before


def _initialise(module: nn.Module, owner: PreTrainedModel, recurse: bool) -> None:
    if recurse:
        for child in module.children():
            _initialise(child, owner, recurse)
    owner._init_weights(module)
