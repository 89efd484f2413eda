"""What the data modules have in common, wherever their samples come from."""

import os
from collections.abc import Mapping
from typing import Any

import lightning.pytorch as pl
from megatron.core.num_microbatches_calculator import get_num_microbatches
from nemo.lightning.io.mixin import IOMixin
from nemo.lightning.pytorch.plugins import MegatronDataSampler

from datamodules.bad_samples import BadSampleLog
from datamodules.rank_log import rank_log
from datamodules.sample_encoder import SampleEncoder, open_encoder
from datamodules.trainer_limits import count_limits_in_steps

_AT_LEAST_ONE = ("seq_length", "micro_batch_size", "global_batch_size", "pad_to_multiple_of")
_AT_LEAST_ONE_OR_NONE = ("max_tiles", "max_samples_per_sequence")
_NOT_NEGATIVE = (
    "num_workers",
    "num_validation_workers",
    "max_bad_samples_in_a_row",
    "seed",
    "split_seed",
    "shuffle_buffer_size",
)
_MULTIPLE_OF = (("global_batch_size", "micro_batch_size"), ("seq_length", "pad_to_multiple_of"))


class ConversationDataModule(pl.LightningDataModule, IOMixin):
    """Conversations with images as micro-batches of one model family.

    A subclass sets the attributes below in its `__init__` and calls `check_arguments`.
    """

    assets: str
    seq_length: int
    micro_batch_size: int
    global_batch_size: int
    max_tiles: int | None
    pad_to_multiple_of: int
    pad_to_seq_length: bool
    bad_sample_file: str | None
    max_bad_samples_in_a_row: int
    data_sampler: MegatronDataSampler
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
        for name, divisor in _MULTIPLE_OF:
            if getattr(self, name) % getattr(self, divisor):
                raise ValueError(
                    f"{name} is {getattr(self, name)}, but must be a multiple of "
                    f"{divisor}={getattr(self, divisor)}."
                )

    def make_sampler(
        self, sampler_class: type[MegatronDataSampler] = MegatronDataSampler
    ) -> MegatronDataSampler:
        """Returns NeMo's sampler of this module's batch sizes."""
        return sampler_class(
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
        encoder = open_encoder(self.assets, self.seq_length, self.max_tiles)
        # Read here, and not in the workers, so that its errors come before anything starts.
        encoder.prepare()
        return encoder

    def collator(self) -> Any:
        """Returns the function that makes micro-batches of encoded samples."""
        fixed_length = self.seq_length if self.pad_to_seq_length else None
        return self.encoder.collator(self.pad_to_multiple_of, fixed_length)

    def bad_sample_log(self) -> BadSampleLog:
        """Returns a new log of samples that cannot be used, of this rank."""
        return rank_log(self.bad_sample_file, self.max_bad_samples_in_a_row)

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
