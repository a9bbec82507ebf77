"""Parameters dealt over the processes by FSDP2, and gathered whole where they are only read.

torch's `fully_shard` does the dealing: a unit for each layer of the model, and one for the rest. A
gradient pass gathers one layer at a time and sums its gradient over the processes on the way back.
What needs no gradient (a rollout, log-probs, an evaluation) runs on weights that were gathered
once, so that no token waits for another process, and processes may differ in all that they run.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from rl4lm.errors import ConfigError, ModelError
from rl4lm.processes import peers


def refuse_engines() -> None:
    """Insist on a launcher that only starts processes.

    Raises:
        ConfigError: it is set up for an engine that makes optimizer steps of its own.
    """
    for name, flag in (("DeepSpeed", "DEEPSPEED"), ("Megatron-LM", "MEGATRON_LM")):
        if os.environ.get(f"ACCELERATE_USE_{flag}", "false").lower() == "true":
            raise ConfigError(
                f"the launcher is set up for {name}, whose engine makes its steps within the "
                "backward pass, where the sum over the processes is not made yet; to deal "
                "parameters over processes use recipes/accelerate/fsdp2.yaml"
            )


def sharding_asked_for() -> Any:
    """The plugin of accelerate that holds the launcher's FSDP settings; None without FSDP.

    accelerate itself hands it out on machines with GPUs only; the settings mean the same on others.

    Raises:
        ConfigError: settings that are not offered here.
    """
    if os.environ.get("ACCELERATE_USE_FSDP", "false").lower() != "true":
        return None
    from accelerate.utils import FullyShardedDataParallelPlugin
    from torch.distributed.fsdp import CPUOffloadPolicy

    plugin = FullyShardedDataParallelPlugin()
    refused = {
        "FSDP1 (fsdp_version: 1, or none)": plugin.fsdp_version != 2,
        "fsdp_offload_params": isinstance(plugin.cpu_offload, CPUOffloadPolicy),
        "fsdp_activation_checkpointing (activation_checkpointing is rl4lm's)": bool(
            plugin.activation_checkpointing
        ),
    }
    for what, given in refused.items():
        if given:
            raise ConfigError(
                f"the launcher asks for {what}, which is not offered; "
                "recipes/accelerate/fsdp2.yaml holds settings that are"
            )
    return plugin


class Shards:
    """The units of a module whose parameters are dealt over the processes; none of a whole one.

    Everything here is called by all processes alike.
    """

    def __init__(
        self,
        units: Sequence[Any] = (),
        reshard_layers: bool = True,
        most: Callable[[int], int] = int,
    ) -> None:
        """Take the units.

        Args:
            units: torch's FSDPModules, the root first.
            reshard_layers: whether a layer is let go of between its forward and backward pass.
            most: the largest of the processes' counts; a pass has to go as often on each of them.
        """
        self.most = most
        # The root stays after a forward pass: the way back needs it first.
        self._units = [(unit, reshard_layers and unit is not units[0]) for unit in units]
        self._parameters = list(units[0].parameters()) if units else []
        self._depth = 0  # of `gathered`

    def __bool__(self) -> bool:
        """Whether there are any."""
        return bool(self._units)

    @contextmanager
    def gathered(self) -> Iterator[None]:
        """Hold all weights whole, for passes without gradient; inside of itself it does nothing."""
        self._depth += 1
        try:
            if self._depth == 1:
                self._gather()
            yield
        finally:
            self._depth -= 1
            if self._depth == 0:
                self._let_go()

    def _gather(self) -> None:
        with self.passing():
            for unit, _ in self._units:
                unit.set_reshard_after_forward(False, recurse=False)
                unit.unshard()

    def passing(self) -> AbstractContextManager[None]:
        """The context of passes in which processes wait for one another."""
        return peers.explaining() if self._units else nullcontext()

    def _let_go(self) -> None:
        for unit, reshard in self._units:
            unit.set_reshard_after_forward(reshard, recurse=False)
            unit.reshard()

    def keep(self) -> list[Tensor]:
        """A copy of this process's part of the weights as they are now."""
        return [local(parameter).clone() for parameter in self._parameters]

    @contextmanager
    def holding(self, kept: Sequence[Tensor]) -> Iterator[None]:
        """Have weights of `keep` in the place of the present ones, gathered."""
        present = self.keep()
        self._replace(kept)
        try:
            with self.gathered():
                yield
        finally:
            self._replace(present)

    def _replace(self, weights: Sequence[Tensor]) -> None:
        if self._depth:
            self._let_go()
        with torch.no_grad():
            for parameter, weight in zip(self._parameters, weights, strict=True):
                local(parameter).copy_(weight)
        if self._depth:
            self._gather()


def shard(
    module: nn.Module,
    causal_lm: Any,
    plugin: Any,
    device: torch.device,
    most: Callable[[int], int],
) -> Shards:
    """Deal the parameters of a module over all processes, in place.

    Gradients are added up over the processes, never averaged: a loss has been divided by the
    completions of the whole step already.

    Args:
        module: whole and equal on all processes; afterwards its parameters are DTensors between
            the passes.
        causal_lm: the `transformers` model inside it, which names its layers.
        plugin: of `sharding_asked_for`.
        device: of this process.
        most: the largest of the processes' counts.

    Raises:
        ModelError: the layers of the model are not known.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    layers = _layers(causal_lm, plugin.transformer_cls_names_to_wrap)
    mesh = init_device_mesh(device.type, (torch.distributed.get_world_size(),))
    for layer in layers:
        fully_shard(layer, mesh=mesh, reshard_after_forward=bool(plugin.reshard_after_forward))
    fully_shard(module, mesh=mesh)
    units: list[Any] = [module, *layers]
    for unit in units:
        unit.set_gradient_divide_factor(1.0)
        unit.set_force_sum_reduction_for_comms(True)  # gloo knows no other
    return Shards(units, bool(plugin.reshard_after_forward), most)


def _layers(causal_lm: Any, asked: Sequence[str] | None) -> list[nn.Module]:
    names = set(asked or getattr(causal_lm, "_no_split_modules", None) or ())
    layers = [each for each in causal_lm.modules() if type(each).__name__ in names]
    if not layers:
        raise ModelError(
            f"the layers of {type(causal_lm).__name__} are not known, so that it cannot be "
            "sharded; name their class in fsdp_config as fsdp_transformer_layer_cls_to_wrap"
        )
    return layers


# The type checker knows of a tensor only what every tensor has; a dealt one is a DTensor.


def whole(tensor: Tensor) -> Tensor:
    """A dealt tensor put together again, on every process; any other as it is."""
    return tensor.full_tensor() if is_dealt(tensor) else tensor  # type: ignore[attr-defined]  # a DTensor


def local(tensor: Tensor) -> Tensor:
    """This process's part of a dealt tensor, in its own memory; any other as it is."""
    return tensor.to_local() if is_dealt(tensor) else tensor  # type: ignore[attr-defined]  # a DTensor


def dealt_like(tensor: Tensor, pattern: Tensor) -> Tensor:
    """A whole tensor dealt as another one of its shape is, without a word to other processes."""
    if not is_dealt(pattern) or tensor.shape != pattern.shape:
        return tensor
    from torch.distributed.tensor import distribute_tensor

    mesh, placements = pattern.device_mesh, pattern.placements  # type: ignore[attr-defined]  # a DTensor
    return distribute_tensor(tensor.to(pattern.device), mesh, placements, src_data_rank=None)


def whole_on_main(tensors: Any, keep: bool) -> Any:
    """A nest of dicts and lists in which dealt tensors are put together, one after the other.

    Args:
        tensors: the nest; what is not a dealt tensor stays as it is.
        keep: hold on to the whole tensors, in the memory of the machine; False where only the
            other processes need this one's parts, and leaves None in their places.
    """
    if isinstance(tensors, Mapping):
        return {key: whole_on_main(value, keep) for key, value in tensors.items()}
    if isinstance(tensors, list):
        return [whole_on_main(value, keep) for value in tensors]
    if not isinstance(tensors, Tensor) or not is_dealt(tensors):
        return tensors
    together = whole(tensors.detach())
    return together.cpu() if keep else None


def is_dealt(tensor: Tensor) -> bool:
    """Whether a tensor is dealt over the processes."""
    return hasattr(tensor, "placements")  # those of a DTensor
