"""LoRA for the language model of a family, beside a vision side that may train in full.

NeMo's class does the arithmetic. What is added here makes a run independent of its layout: layers
are counted over all pipeline stages, adapters start from the same numbers for every tensor-parallel
degree, and the parts of the vision side that train are saved in every precision.
"""

import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import lightning.pytorch as pl
import torch
import torch.distributed as dist
from lightning.pytorch.trainer.states import TrainerFn
from megatron.core import parallel_state
from megatron.core.extensions.transformer_engine import (
    TEColumnParallelLinear,
    TELayerNormColumnParallelLinear,
    TERowParallelLinear,
)
from megatron.core.transformer.module import MegatronModule
from nemo.collections.llm.peft.lora import LoRA
from nemo.collections.llm.peft.utils import ParallelLinearAdapter, wildcard_match
from nemo.lightning.io.pl import ckpt_to_dir
from nemo.lightning.pytorch.callbacks.peft import WrappedAdapterIO
from nemo.lightning.pytorch.utils import is_trainer_attached
from nemo.utils.get_rank import is_global_rank_zero
from torch import nn

from models.adapter_paths import LORA, AdapterSettings, checkpoint_folder, write_metadata

_LINEAR_TYPES = (TEColumnParallelLinear, TELayerNormColumnParallelLinear, TERowParallelLinear)


class _Linear(NamedTuple):
    """A linear layer of the language model, and where it hangs."""

    parent: nn.Module
    name: str
    prefix: str
    """Path of the parent as a checkpoint has it, with the layer's number over all stages."""

    @property
    def full_name(self) -> str:
        return f"{self.prefix}.{self.name}"


@dataclass
class LanguageLoRA(LoRA):
    """Adapters on linear layers of the language model.

    Args:
        target_modules: names (`linear_qkv`) or patterns (`*.layers.3.*.linear_qkv`, numbers as in
            Hugging Face) of linear layers below `language_model`; the default is all of them, those
            of the cross-attention included.
        dim: rank; divisible by the tensor-parallel degree.
        alpha: the adapters' product is scaled by alpha / dim.
        dropout: of the adapters' input (`dropout_position` "pre") or output ("post").
        freeze_language_model: only its adapters train: neither norms, gates, embedding nor output.
        freeze_vision_model: the vision encoder does not train.
        freeze_vision_projection: the projection behind it does not train.
        seed: of the adapters' first weights.

    What the model's own configuration freezes stays frozen.
    """

    kind: ClassVar[str] = LORA

    target_modules: list[str] = field(default_factory=lambda: ["*.language_model.*.linear_*"])
    freeze_language_model: bool = True
    freeze_vision_model: bool = False
    freeze_vision_projection: bool = False
    seed: int = 1234

    def __call__(self, model: nn.Module) -> nn.Module:
        """Freeze, and put adapters in, this rank's part of the model.

        Raises:
            ValueError: a pattern that matches nothing on any stage, a rank that does not divide,
                or interleaved pipeline stages.
        """
        self._check_layout()
        self.freeze_model(model)
        linears = [linear for part in family_models(model) for linear in _language_linears(part)]
        self._check_patterns([linear.full_name for linear in linears])
        for linear in linears:
            module = getattr(linear.parent, linear.name)
            adapted = self.transform(module, name=linear.name, prefix=linear.prefix)
            if adapted is not module:
                self._initialise(adapted.adapter, linear.full_name)
                adapted._register_load_state_dict_pre_hook(_name_base_weights)
                setattr(linear.parent, linear.name, adapted)
        if is_trainer_attached(model) and model.trainer.state.fn != TrainerFn.FITTING:
            self.freeze_model(model)
        return model

    def freeze_model(self, model: nn.Module) -> None:
        """Freeze the parts that the flags name, on every chunk of this rank and in any wrapper."""
        for part in family_models(model):
            for name in ("language_model", "vision_model", "vision_projection"):
                module = getattr(part, name, None)
                if getattr(self, f"freeze_{name}") and module is not None:
                    module.requires_grad_(False)
                    # The model reads it, to compute a frozen vision encoder without gradients.
                    if name != "language_model":
                        setattr(part.config, f"freeze_{name}", True)
        if is_trainer_attached(model) and model.trainer.state.fn == TrainerFn.FITTING:
            model.train(mode=True)

    def settings(self) -> AdapterSettings:
        """Return what has to be known to rebuild the adapters."""
        return AdapterSettings(
            dim=self.dim,
            alpha=self.alpha,
            dropout=self.dropout,
            target_modules=tuple(self.target_modules),
            kind=self.kind,
        )

    def apply_transform(self, trainer: pl.Trainer) -> None:
        """Put the adapters in, and load those of a checkpoint on a resume.

        Raises:
            ValueError: the run does not start from a checkpoint, so there is no base to refer to.
        """
        if self.wrapped_io.model_ckpt_path is None:
            raise ValueError("init_from: None is not allowed with LoRA; give the base checkpoint.")
        super().apply_transform(trainer)

    def set_params_to_save(self, trainer: pl.Trainer) -> None:
        """Note the names, as a checkpoint has them, of everything that trains.

        NeMo takes the names in the module tree, which the wrappers of bf16 and of the adapters
        lengthen: a vision encoder trained in bf16 would be left out.
        """
        self.params_to_save = {
            f"module.{name}".replace(".to_wrap.", ".")
            for part in family_models(trainer.lightning_module)
            for name, parameter in part.named_parameters()
            if parameter.requires_grad
        }

    def get_wrappped_io(self) -> Callable[..., WrappedAdapterIO]:  # NeMo's spelling
        """Return what wraps the reading and writing of checkpoints."""
        return partial(AdapterCheckpointIO, peft=self)

    def _check_layout(self) -> None:
        stages = parallel_state.get_virtual_pipeline_model_parallel_world_size()
        if stages is not None:
            raise ValueError(
                f"virtual_pipeline_model_parallel_size: {stages} is not supported with LoRA; "
                "use None."
            )
        parts = parallel_state.get_tensor_model_parallel_world_size()
        if self.dim < 1 or self.dim % parts:
            raise ValueError(
                f"dim: {self.dim} is not allowed; the tensor-parallel degree of {parts} has to "
                "divide it."
            )

    def _check_patterns(self, own_names: list[str]) -> None:
        """Refuse patterns that match nothing; a stage sees the names of all."""
        names = sorted(set(_on_all_stages(own_names)))
        assert names
        for pattern in self.target_modules:
            if not any(
                pattern == name.rpartition(".")[2] or wildcard_match(pattern, name)
                for name in names
            ):
                kinds = sorted({name.rpartition(".")[2] for name in names})
                raise ValueError(
                    f"target_modules: {pattern!r} matches no linear layer of the language model; "
                    f"there are {', '.join(kinds)}, with full names from {names[0]} to {names[-1]}."
                )

    def _initialise(self, adapter: ParallelLinearAdapter, name: str) -> None:
        """Draw the first weights of the whole adapter and keep this rank's part."""
        parts = parallel_state.get_tensor_model_parallel_world_size()
        rank = parallel_state.get_tensor_model_parallel_rank()
        for linear, method, split in (
            (adapter.linear_in, self.lora_A_init_method, 1 if adapter.input_is_parallel else 0),
            (adapter.linear_out, self.lora_B_init_method, 0),
        ):
            weight = linear.weight
            shape = list(weight.shape)
            shape[split] *= parts
            whole = torch.empty(shape, dtype=torch.float32, device="cpu")
            with torch.random.fork_rng(devices=[]):
                torch.default_generator.manual_seed(zlib.crc32(f"{self.seed} {name}".encode()))
                adapter._get_init_fn(method)(whole)
            with torch.no_grad():
                weight.copy_(whole.chunk(parts, dim=split)[rank])


class AdapterCheckpointIO(WrappedAdapterIO):
    """NeMo's reading and writing of adapters, with a base that is found again from elsewhere."""

    peft: LanguageLoRA
    model_ckpt_path: Path | None

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None
    ) -> Any:
        """Write what was trained, and the description of the adapters."""
        request = super().save_checkpoint(checkpoint, path, storage_options)
        if is_global_rank_zero():
            assert self.model_ckpt_path is not None
            write_metadata(ckpt_to_dir(path), self.model_ckpt_path, self.peft.settings())
        return request

    def load_checkpoint(self, path: Any, *arguments: Any, **options: Any) -> dict[str, Any]:
        """Load the base, or the adapters; remember the base by its absolute path."""
        base = self.model_ckpt_path
        loaded = super().load_checkpoint(path, *arguments, **options)
        if base is not None:
            # The second pass of a resume reads the path from the description, which may be stale.
            self.model_ckpt_path = base
        assert self.model_ckpt_path is not None
        self.model_ckpt_path = checkpoint_folder(Path(str(self.model_ckpt_path))).resolve()
        return loaded


def family_models(model: nn.Module) -> list[nn.Module]:
    """Return the Megatron-Core models (one per chunk) in any wrapper, or `model` itself."""
    return [
        module
        for module in model.modules()
        if isinstance(module, MegatronModule) and "language_model" in module._modules
    ]


def _name_base_weights(state: dict[str, Any], prefix: str, *_: Any) -> None:
    """Give the base's tensors of an adapted layer the names that they have in the module tree.

    The state dictionary that NeMo's wrapper writes leaves its own name for the base out.
    """
    for name in [name for name in state if name.startswith(prefix)]:
        rest = name.removeprefix(prefix)
        if not rest.startswith(("adapter.", "to_wrap.")):
            state[f"{prefix}to_wrap.{rest}"] = state.pop(name)


def _language_linears(part: nn.Module) -> Iterator[_Linear]:
    """Yield the linear layers of one chunk's language model."""
    for layer in part.language_model.decoder.layers:
        prefix = f"module.language_model.decoder.layers.{layer.layer_number - 1}"
        for path, module in list(layer.named_modules()):
            if isinstance(module, _LINEAR_TYPES):
                parent, _, name = path.rpartition(".")
                yield _Linear(layer.get_submodule(parent), name, f"{prefix}.{parent}")


def _on_all_stages(names: list[str]) -> list[str]:
    """Return the names of all pipeline stages."""
    stages = parallel_state.get_pipeline_model_parallel_world_size()
    if stages == 1:
        return names
    by_stage: list[Any] = [None] * stages
    dist.all_gather_object(
        by_stage, names, group=parallel_state.get_pipeline_model_parallel_group()
    )
    return [name for stage in by_stage for name in stage]
