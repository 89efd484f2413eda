"""What the data modules have in common, wherever their samples come from."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import lightning.pytorch as pl
import torch
from megatron.core import parallel_state
from megatron.core.num_microbatches_calculator import get_num_microbatches
from nemo.lightning.io.mixin import IOMixin
from nemo.lightning.pytorch.plugins import MegatronDataSampler

from datamodules.bad_samples import BadSampleLog
from datamodules.conversation import GivenTemplate
from datamodules.image_resize import ImageResize, check_image_resize
from datamodules.packing import Room
from datamodules.rank_log import rank_log
from datamodules.read_watch import ReadWatch
from datamodules.sample_encoder import Collator, SampleEncoder, open_encoder
from datamodules.trainer_limits import count_limits_in_steps

_AT_LEAST_ONE = ("seq_length", "micro_batch_size", "global_batch_size", "pad_to_multiple_of")
_AT_LEAST_ONE_OR_NONE = (
    "max_tiles",
    "max_tiles_per_row",
    "read_timeout_seconds",
    "max_samples_per_sequence",
    "packing_buffer_size",
)
_NOT_NEGATIVE = (
    "num_workers",
    "num_validation_workers",
    "max_bad_samples_in_a_row",
    "seed",
    "split_seed",
    "shuffle_buffer_size",
)
_MULTIPLE_OF = (("global_batch_size", "micro_batch_size"), ("seq_length", "pad_to_multiple_of"))


class RowSampler(MegatronDataSampler):
    """Counts samples as NeMo's sampler does; some loaders need no dealing out."""

    def transform_dataloader(self, dataloader: Any, consumed_samples: int = 0) -> Any:
        """Returns the loader itself where it deals out by itself, else what NeMo makes of it."""
        if getattr(dataloader, "deals_by_itself", False):
            return dataloader
        return super().transform_dataloader(dataloader, consumed_samples=consumed_samples)


@dataclass(frozen=True, slots=True, kw_only=True)
class DataParallelPlace:
    """This process among those that read different samples."""

    rank: int
    size: int
    group: Any

    def gather(self, value: Any) -> list[Any]:
        """Returns the value of every rank; all ranks must call this."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        torch.distributed.all_gather_object(values, value, group=self.group)
        return values


def data_parallel_place() -> DataParallelPlace:
    """Returns the place of this process; one that is not part of a job is alone."""
    if not parallel_state.is_initialized():
        return DataParallelPlace(rank=0, size=1, group=None)
    return DataParallelPlace(
        rank=parallel_state.get_data_parallel_rank(),
        size=parallel_state.get_data_parallel_world_size(),
        group=parallel_state.get_data_parallel_group(),
    )


class ConversationDataModule(pl.LightningDataModule, IOMixin):
    """Conversations with images as micro-batches of one model family.

    A subclass sets the attributes below in its `__init__` and calls `check_arguments`.
    """

    assets: str
    seq_length: int
    micro_batch_size: int
    global_batch_size: int
    max_tiles: int | None
    max_tiles_per_row: int | None
    image_resize: ImageResize
    conversation_template: GivenTemplate
    preference_pairs: bool
    image_token: str
    packing_buffer_size: int | None
    pad_to_multiple_of: int
    pad_to_seq_length: bool
    bad_sample_file: str | None
    max_bad_samples_in_a_row: int
    read_timeout_seconds: float | None
    data_sampler: RowSampler
    _encoder: SampleEncoder[Any] | None = None
    _reconfigured: pl.Trainer | None = None

    @property
    def encoder(self) -> SampleEncoder[Any]:
        """The encoder of the model that `assets` belongs to."""
        assert self._encoder is not None, "setup() comes before the encoder"
        return self._encoder

    def check_arguments(self) -> None:
        """Checks what both kinds of module take.

        Raises:
            ValueError: An argument is out of range.
        """
        for name in _AT_LEAST_ONE + _AT_LEAST_ONE_OR_NONE:
            value = getattr(self, name, None)
            if value is not None and value < 1:
                raise ValueError(f"{name} is {value}, but must be at least 1.")
        for name in _NOT_NEGATIVE:
            if getattr(self, name, 0) < 0:
                raise ValueError(f"{name} is {getattr(self, name)}, but must be zero or more.")
        check_image_resize(self.image_resize)
        if not self.image_token:
            raise ValueError("image_token is '', but must be some text.")
        for name, divisor in _MULTIPLE_OF:
            if getattr(self, name) % getattr(self, divisor):
                raise ValueError(
                    f"{name} is {getattr(self, name)}, but must be a multiple of "
                    f"{divisor}={getattr(self, divisor)}."
                )

    def make_sampler(self) -> RowSampler:
        """Returns a sampler of this module's batch sizes."""
        return RowSampler(
            seq_len=self.seq_length,
            micro_batch_size=self.micro_batch_size,
            global_batch_size=self.global_batch_size,
            dataloader_type="single",
        )

    def open_encoder(self) -> SampleEncoder[Any]:
        """Returns the encoder with all that it reads from files.

        Raises:
            ValueError: The assets are missing or do not suit.
        """
        # Workers are forked after this; the tokenizers library would warn about that in each one.
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        encoder = open_encoder(
            self.assets,
            self.seq_length,
            self.max_tiles,
            self.max_tiles_per_row,
            self.image_resize,
            self.conversation_template,
            self.preference_pairs,
        )
        # Read here, and not in the workers, so that its errors come before anything starts.
        encoder.prepare()
        return encoder

    def room(self) -> Room:
        """Returns what fits into a packed row: one sample at least, which may be a pair."""
        halves = 2 if self.preference_pairs else 1
        tiles = self.max_tiles_per_row
        return Room(
            positions=halves * self.seq_length, tiles=None if tiles is None else halves * tiles
        )

    def collator(self) -> Collator:
        """Returns the function that makes micro-batches of encoded samples."""
        fixed_length = self.seq_length if self.pad_to_seq_length else None
        return self.encoder.collator(self.pad_to_multiple_of, fixed_length)

    def bad_sample_log(self) -> BadSampleLog:
        """Returns a new log of samples that cannot be used, of this rank."""
        return rank_log(self.bad_sample_file, self.max_bad_samples_in_a_row)

    def read_watch(self) -> ReadWatch:
        """Returns what ends reads that hang."""
        return ReadWatch(self.read_timeout_seconds, self.bad_sample_log())

    def count_from(self, step: int) -> None:
        """Makes NeMo's sampler count consumed samples from this step on."""
        self.init_global_step = step
        self.data_sampler.init_global_step = step

    def consumed_samples(self) -> int:
        """Returns the samples of all ranks that training has consumed."""
        steps = self.trainer.global_step - self.init_global_step
        return self.data_sampler.compute_consumed_samples(steps)

    def continue_after(self, state: Mapping[str, Any]) -> None:
        """Makes NeMo's sampler go on where a checkpoint stopped."""
        self.data_sampler.init_consumed_samples = state["consumed_samples"]
        self.data_sampler.prev_consumed_samples = state["consumed_samples"]
        self.data_sampler.if_first_step = 1

    def reconfigure_limit_batches(self) -> None:
        """Makes the trainer's limits count steps, once; NeMo calls this before loaders are made.

        Raises:
            ValueError: A limit would end or repeat the training data.
        """
        if self._reconfigured is not self.trainer:
            self._reconfigured = self.trainer
            count_limits_in_steps(self.trainer, get_num_microbatches())
