"""NeMo data module over tar shards, read by Energon."""

from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import version
from typing import Any

from megatron.energon import WorkerConfig

from datamodules.blend import check_weights
from datamodules.conversation import GivenTemplate
from datamodules.conversation_module import ConversationDataModule, data_parallel_place
from datamodules.energon_loaders import evaluation_batches, training_batches
from datamodules.energon_shards import ShardSet, open_shards
from datamodules.energon_stream import EvaluationBatches, ReadingPlace, TrainingBatches
from datamodules.energon_task import ConversationTask
from datamodules.image_resize import ImageResize
from datamodules.split import as_list
from sample_loaders.conversation import IMAGE_PLACEHOLDER


class EnergonDataModule(ConversationDataModule):
    """Training, validation and test data from tar shards prepared with `energon prepare`.

    A data set is a folder with `.nv-meta`, or a metadata set, a file that blends such folders. Its
    samples are crude (`json` and images, see `sample_loaders.energon`) or VQA samples.

    Training has no end and is shuffled; its order depends on the shards, the seed, the shuffle
    settings, and on the numbers of ranks and workers. Checkpoints hold the place of every rank, and
    a resumed run goes on with the next sample, or refuses. Validation and test give every sample
    once, in the order of the shards; what is missing to whole steps is filled up with samples in
    which nothing is learnt.

    Args:
        path: The data set, or several that are blended.
        weights: Share of each of several; None takes their sizes.
        data_root: Where relative paths inside of metadata sets start; None takes each one's folder.
        validation_path: Data sets of validation; None takes `path`.
        test_path: Data sets of test; None takes `path`.
        train_split: The split that is trained on.
        validation_split: The split that validation reads; None for no validation.
        test_split: The split that test reads; None for no test.
        assets: Folder with configuration and tokenizer of the model.
        seq_length: Longest sample in positions.
        micro_batch_size: Samples per micro-batch.
        global_batch_size: Samples per step over all ranks.
        max_tiles: Largest tile grid of an image, or None for that of the model.
        num_workers: Worker processes of training, on each rank.
        packing_buffer_size: Pack several samples into every row of training, chosen from so many;
            None gives every sample a row.
        max_tiles_per_row: No row has more tiles than this in all; None for no bound.
        image_resize: "exact" resizes images with Pillow, "fast" in much less time, with pixels that
            differ by at most two of 255 levels.
        conversation_template: Goes before the tokenizer's own chat template: a name (`v1`,
            `llava_jp`), `plain` (images, answer, newline: LLaVA's first stage), or a
            `ConversationTemplate`; None takes the tokenizer's.
        preference_pairs: Every record has a `chosen` and a `rejected` answer to its last question,
            and is one sample of two conversations; a packed row then has twice the room.
        image_token: What stands for an image in the text of a record.
        image_following_text: Of samples whose images are matched to texts (Energon's
            SimilarityInterleavedSample, as of MMC4): whether an image comes after its text.
        num_validation_workers: The same for validation and test; None takes `num_workers`.
        seed: Chooses the order of training.
        shuffle_buffer_size: Samples that each worker draws the next one from; 0 or 1 for none.
        max_samples_per_sequence: So many samples at most are read one after the other from a shard
            before another place is drawn; None reads whole shards.
        pad_to_multiple_of: Row lengths are rounded up to this.
        pad_to_seq_length: True makes every row `seq_length` long.
        bad_sample_file: File that samples which cannot be used are listed in; None only counts.
        max_bad_samples_in_a_row: One more in a row, of one reader, stops the run.
        read_timeout_seconds: A read that takes longer ends the run; None for no bound.
        pin_memory: Whether loaders pin their tensors, for faster copies to a GPU.
        tokenizer: Not used, the one in `assets` is; NeMo's training functions set and read it.

    Raises:
        ValueError: An argument does not suit; data sets are looked at in `setup`.
    """

    def __init__(
        self,
        path: str | list[str] = "",
        weights: list[float] | None = None,
        data_root: str | None = None,
        validation_path: str | list[str] | None = None,
        test_path: str | list[str] | None = None,
        train_split: str = "train",
        validation_split: str | None = "val",
        test_split: str | None = None,
        assets: str = "",
        seq_length: int = 4096,
        micro_batch_size: int = 1,
        global_batch_size: int = 8,
        max_tiles: int | None = None,
        num_workers: int = 2,
        packing_buffer_size: int | None = None,
        max_tiles_per_row: int | None = None,
        num_validation_workers: int | None = None,
        seed: int = 1234,
        shuffle_buffer_size: int = 100,
        max_samples_per_sequence: int | None = 100,
        pad_to_multiple_of: int = 8,
        pad_to_seq_length: bool = False,
        bad_sample_file: str | None = None,
        max_bad_samples_in_a_row: int = 100,
        read_timeout_seconds: float | None = 600.0,
        pin_memory: bool = False,
        image_resize: ImageResize = "fast",
        conversation_template: GivenTemplate = None,
        preference_pairs: bool = False,
        image_token: str = IMAGE_PLACEHOLDER,
        image_following_text: bool = True,
        tokenizer: Any = None,
    ) -> None:
        super().__init__()
        self.path = as_list(path)
        self.weights = weights
        self.data_root = data_root
        self.validation_path = as_list(validation_path) or self.path
        self.test_path = as_list(test_path) or self.path
        self.train_split = train_split
        self.validation_split = validation_split
        self.test_split = test_split
        self.assets = assets
        self.seq_length = seq_length
        self.micro_batch_size = micro_batch_size
        self.global_batch_size = global_batch_size
        self.max_tiles = max_tiles
        self.num_workers = num_workers
        self.packing_buffer_size = packing_buffer_size
        self.max_tiles_per_row = max_tiles_per_row
        self.num_validation_workers = (
            num_workers if num_validation_workers is None else num_validation_workers
        )
        self.seed = seed
        self.shuffle_buffer_size = shuffle_buffer_size
        self.max_samples_per_sequence = max_samples_per_sequence
        self.pad_to_multiple_of = pad_to_multiple_of
        self.pad_to_seq_length = pad_to_seq_length
        self.bad_sample_file = bad_sample_file
        self.max_bad_samples_in_a_row = max_bad_samples_in_a_row
        self.read_timeout_seconds = read_timeout_seconds
        self.pin_memory = pin_memory
        self.image_resize = image_resize
        self.conversation_template = conversation_template
        self.preference_pairs = preference_pairs
        self.image_token = image_token
        self.image_following_text = image_following_text
        self.tokenizer = tokenizer
        self.init_global_step = 0
        self.check_arguments()
        self.data_sampler = self.make_sampler()
        self._resumed: dict[str, Any] | None = None
        self._training: TrainingBatches | None = None

    def setup(self, stage: str = "") -> None:
        """Opens the tokenizer and looks at the data sets; a second call does nothing.

        Raises:
            ValueError: A data set or the tokenizer is missing or does not suit.
        """
        del stage  # looking costs little, and a resumed run may validate before it trains
        if self._encoder is not None:
            return
        encoder = self.open_encoder()
        alone = WorkerConfig(rank=0, world_size=1, num_workers=0)
        for paths, split in (
            (self.path, self.train_split),
            (self.validation_path, self.validation_split),
            (self.test_path, self.test_split),
        ):
            if split is not None:
                open_shards(paths, None, split, alone, training=False, data_root=self.data_root)
        self._encoder = encoder

    def train_dataloader(self) -> TrainingBatches:
        """Returns the loader of training; called again, the same one.

        Raises:
            ValueError: There are too few samples, or the place in a checkpoint cannot be restored.
        """
        # Only here: a loader made later, for validation, must not move where counting began.
        if self._training is None:
            self.count_from(self.trainer.global_step)
            self._training = self._make_training()
        return self._training

    def val_dataloader(self) -> EvaluationBatches | list:
        """Returns the loader of validation, or none."""
        return self._evaluation_loader(self.validation_path, self.validation_split)

    def test_dataloader(self) -> EvaluationBatches | list:
        """Returns the loader of test, or none."""
        return self._evaluation_loader(self.test_path, self.test_split)

    def state_dict(self) -> dict[str, Any]:
        """Returns the places of all ranks, and what they depend on; all ranks must call this."""
        consumed = self.consumed_samples()
        if self._training is None:
            # Nothing was trained on, so what came is handed on.
            return self._resumed or {"consumed_samples": consumed, "settings": None, "places": None}
        place = self._training.place_after(
            (self.trainer.global_step - self.init_global_step) * self._micro_batches()
        )
        mine = None if place is None else asdict(place)
        return {
            "consumed_samples": consumed,
            "settings": self._settings(self._open_training()),
            "places": data_parallel_place().gather(mine),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continues where a checkpoint stopped.

        Raises:
            ValueError: The data are not read as the checkpoint was made with.
        """
        missing = {"consumed_samples", "settings", "places"} - set(state_dict)
        if missing:
            raise ValueError(
                f"The checkpoint's state of the training data has no {', '.join(sorted(missing))}, "
                f"so training cannot go on at the next sample."
            )
        if self._encoder is not None:
            self._check_settings(state_dict, self._open_training())
        self._resumed = state_dict
        self._training = None
        self.continue_after(state_dict)

    def check_arguments(self) -> None:
        """Checks all arguments that no file is needed for.

        Raises:
            ValueError: An argument does not suit.
        """
        super().check_arguments()
        if not self.path or not all(self.path):
            raise ValueError(f"path is {self.path}, but must name at least one data set.")
        if self.weights is not None:
            check_weights(self.weights, len(self.path))

    def _micro_batches(self) -> int:
        """Micro-batches of one rank in a step."""
        return self.global_batch_size // (self.micro_batch_size * data_parallel_place().size)

    def _worker_config(self, num_workers: int) -> WorkerConfig:
        place = data_parallel_place()
        return WorkerConfig(
            rank=place.rank,
            world_size=place.size,
            num_workers=num_workers,
            data_parallel_group=place.group,
            seed_offset=self.seed,
        )

    def _open_training(self) -> list[ShardSet]:
        return open_shards(
            self.path,
            self.weights,
            self.train_split,
            self._worker_config(self.num_workers),
            training=True,
            max_samples_per_sequence=self.max_samples_per_sequence,
            data_root=self.data_root,
        )

    def _make_training(self) -> TrainingBatches:
        shards = self._open_training()
        parallel = data_parallel_place()
        start = None
        if self._resumed is not None:
            self._check_settings(self._resumed, shards)
            saved = self._resumed["places"] and self._resumed["places"][parallel.rank]
            start = None if saved is None else ReadingPlace(**saved)
        elif self.trainer.global_step:
            raise ValueError(
                f"The run goes on after step {self.trainer.global_step}, but its checkpoint holds "
                f"no state of this data module, so the next sample is not known."
            )
        return training_batches(
            shards,
            self._task(fill=False),
            self._worker_config(self.num_workers),
            micro_batch_size=self.micro_batch_size,
            shuffle_buffer_size=self.shuffle_buffer_size,
            packing_buffer_size=self.packing_buffer_size,
            # A checkpoint counts whole steps, while the next one may have begun.
            remembered=2 * self._micro_batches() + 2,
            start=start,
            pin_memory=self.pin_memory,
        )

    def _evaluation_loader(
        self, paths: Sequence[str], split: str | None
    ) -> EvaluationBatches | list:
        if split is None:
            return []
        config = self._worker_config(self.num_validation_workers)
        shards = open_shards(paths, None, split, config, training=False, data_root=self.data_root)
        return evaluation_batches(
            shards,
            self._task(fill=True),
            config,
            micro_batch_size=self.micro_batch_size,
            multiple_of=self._micro_batches(),
            pin_memory=self.pin_memory,
        )

    def _task(self, *, fill: bool) -> ConversationTask:
        return ConversationTask(
            self.encoder,
            self.collator(),
            self.bad_sample_log(),
            fill=fill,
            room=self.room(),
            decode_log=self.bad_sample_log(),
            watch=self.read_watch(),
            image_token=self.image_token,
            image_following_text=self.image_following_text,
        )

    def _settings(self, shards: Sequence[ShardSet]) -> dict[str, Any]:
        """All that the order of training depends on, as plain data."""
        return {
            "path": list(self.path),
            "weights": self.weights,
            "train_split": self.train_split,
            "seed": self.seed,
            "shuffle_buffer_size": self.shuffle_buffer_size,
            "max_samples_per_sequence": self.max_samples_per_sequence,
            "micro_batch_size": self.micro_batch_size,
            "packing_buffer_size": self.packing_buffer_size,
            "seq_length": self.seq_length if self.packing_buffer_size else None,
            "max_tiles_per_row": self.max_tiles_per_row,
            "num_workers": self.num_workers,
            "data_parallel_size": data_parallel_place().size,
            "shards": [[each.source, len(each), each.share] for each in shards],
            "energon": version("megatron-energon"),
        }

    def _check_settings(self, saved: dict[str, Any], shards: Sequence[ShardSet]) -> None:
        if saved["settings"] is None:
            return
        current = self._settings(shards)
        for name in current:
            if saved["settings"].get(name) != current[name]:
                raise ValueError(
                    f"The checkpoint was made with {name}={saved['settings'].get(name)} of the "
                    f"training data, but now it is {current[name]}, and training could not go on "
                    f"at the next sample."
                )
