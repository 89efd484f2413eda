"""NeMo data module over LLaVA JSON files and image folders."""

from collections.abc import Sequence
from typing import Any

from nemo.lightning.data import WrappedDataLoader

from datamodules.blend import Blend, check_weights
from datamodules.conversation import GivenTemplate
from datamodules.conversation_module import ConversationDataModule, data_parallel_place
from datamodules.dataset import EvaluationSamples, Source, TrainingSamples
from datamodules.image_resize import ImageResize
from datamodules.lanes import LaneState
from datamodules.packed_batches import PackedBatches, PackedStream, PackingSettings
from datamodules.split import SPLIT_PARTS, as_list, check_fractions, open_sources, split_sources
from sample_loaders.conversation import IMAGE_PLACEHOLDER


class PreloadedDataModule(ConversationDataModule):
    """Training, validation and test data from JSONL or JSON files in LLaVA form.

    Files are opened by an index of byte offsets; nothing else of them stays in memory. The order of
    training depends on the files' sizes, `weights`, `seed` and `shuffle` only, so it is the same
    for every number of ranks and workers and goes on after a resume at exactly the next sample.
    Training data never end: files are walked again, in a new order, as often as `max_steps` needs.
    Validation and test see every record once, in file order, without weights.

    Args:
        train_paths: One or several files.
        weights: Share of each training file in the blend; None takes their sizes.
        validation_paths: Files for validation; none, and no `split`: no validation.
        test_paths: Files for test.
        split: Shares of training, validation and test that `train_paths` are split into. Allowed
            only without `validation_paths` and `test_paths`.
        split_seed: Chooses the records of the split.
        image_folder: Folder of the images, or one for each of `train_paths`; None takes the folder
            of each file.
        validation_image_folder: The same for `validation_paths`; None takes `image_folder` where
            that is one folder.
        test_image_folder: The same for `test_paths`.
        assets: Folder with configuration and tokenizer of the model.
        seq_length: Longest sample in positions.
        micro_batch_size: Samples per micro-batch.
        global_batch_size: Samples per step over all ranks.
        max_tiles: Largest number of tiles of an image, a thumbnail not counted; None takes what
            the model's configuration says.
        num_workers: Worker processes of each loader.
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
        seed: Chooses the order of training.
        shuffle: False walks the training files in file order.
        pad_to_multiple_of: Row lengths are rounded up to this.
        pad_to_seq_length: True makes every row `seq_length` long.
        bad_sample_file: File that samples which cannot be used are listed in; None only counts.
        max_bad_samples_in_a_row: One more in a row, of one reader, stops the run.
        read_timeout_seconds: A read that takes longer ends the run; None for no bound.
        pin_memory: Whether loaders pin their tensors, for faster copies to a GPU.
        tokenizer: Not used, the one in `assets` is; NeMo's training functions set and read it.

    Raises:
        ValueError: An argument does not suit; files are looked at in `setup`.
    """

    def __init__(
        self,
        train_paths: str | list[str] | None = None,
        weights: list[float] | None = None,
        validation_paths: str | list[str] | None = None,
        test_paths: str | list[str] | None = None,
        split: list[float] | None = None,
        split_seed: int = 1234,
        image_folder: str | list[str] | None = None,
        validation_image_folder: str | list[str] | None = None,
        test_image_folder: str | list[str] | None = None,
        assets: str = "",
        seq_length: int = 4096,
        micro_batch_size: int = 1,
        global_batch_size: int = 8,
        max_tiles: int | None = None,
        num_workers: int = 2,
        packing_buffer_size: int | None = None,
        max_tiles_per_row: int | None = None,
        seed: int = 1234,
        shuffle: bool = True,
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
        tokenizer: Any = None,
    ) -> None:
        super().__init__()
        self.train_paths = as_list(train_paths)
        self.validation_paths = as_list(validation_paths)
        self.test_paths = as_list(test_paths)
        self.weights = weights
        self.split = split
        self.split_seed = split_seed
        self.image_folder = image_folder
        self.validation_image_folder = validation_image_folder
        self.test_image_folder = test_image_folder
        self.assets = assets
        self.seq_length = seq_length
        self.micro_batch_size = micro_batch_size
        self.global_batch_size = global_batch_size
        self.max_tiles = max_tiles
        self.num_workers = num_workers
        self.packing_buffer_size = packing_buffer_size
        self.max_tiles_per_row = max_tiles_per_row
        self.seed = seed
        self.shuffle = shuffle
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
        self.tokenizer = tokenizer
        self.init_global_step = 0
        self.check_arguments()
        self.data_sampler = self.make_sampler()
        self._sources: dict[str, list[Source]] | None = None
        self._resumed: dict[str, Any] | None = None
        self._packed: PackedBatches | None = None

    def setup(self, stage: str = "") -> None:
        """Opens the files and the tokenizer; a second call does nothing.

        Raises:
            ValueError: A file, a folder or the tokenizer is missing or does not suit.
        """
        del stage  # opening costs little, and a resumed run may validate before it trains
        if self._sources is not None:
            return
        encoder = self.open_encoder()
        sources = {
            "train": open_sources(
                self.train_paths, self.image_folder, "image_folder", self.image_token
            ),
            "validation": open_sources(
                self.validation_paths,
                self._evaluation_folder(self.validation_image_folder),
                "validation_image_folder",
                self.image_token,
            ),
            "test": open_sources(
                self.test_paths,
                self._evaluation_folder(self.test_image_folder),
                "test_image_folder",
                self.image_token,
            ),
        }
        if self.split is not None:
            sources = split_sources(sources["train"], self.split, self.split_seed)
        self._encoder, self._sources = encoder, sources
        if self._resumed is not None:
            self._check_order(self._resumed["order"])

    def train_dataloader(self) -> WrappedDataLoader | PackedBatches:
        """Returns the loader of training, which NeMo's sampler starts at the consumed samples."""
        sources = self._part("train")
        if not sources:
            raise ValueError("train_paths is empty, but training needs at least one file.")
        # Only here: a loader made later, for validation, must not move where counting began.
        self.count_from(self.trainer.global_step)
        samples = TrainingSamples(
            sources, self._blend(sources), self.encoder, self.bad_sample_log(), self.read_watch()
        )
        if self.packing_buffer_size is None:
            return self._loader(samples, "train")
        if self._packed is None:
            self._packed = self._pack(samples, self.packing_buffer_size)
        return self._packed

    def val_dataloader(self) -> WrappedDataLoader | list:
        """Returns the loader of validation, or none."""
        return self._evaluation_loader("validation")

    def test_dataloader(self) -> WrappedDataLoader | list:
        """Returns the loader of test, or none."""
        return self._evaluation_loader("test")

    def state_dict(self) -> dict[str, Any]:
        """Returns how many samples were consumed, and what their order depends on."""
        return {
            "consumed_samples": self.consumed_samples(),
            "order": self._order(),
            "lanes": self._lane_states(),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continues where a checkpoint stopped.

        Raises:
            ValueError: The order of samples is not the one that the checkpoint counted in.
        """
        self._resumed = state_dict
        self._packed = None
        if self._sources is not None:
            self._check_order(state_dict["order"])
        self.continue_after(state_dict)

    def check_arguments(self) -> None:
        """Checks all arguments that no file is needed for.

        Raises:
            ValueError: An argument does not suit.
        """
        super().check_arguments()
        if self.weights is not None and self.train_paths:
            check_weights(self.weights, len(self.train_paths))
        if self.split is None:
            return
        if self.validation_paths or self.test_paths:
            raise ValueError(
                f"split is {self.split}, but must be None where validation_paths or test_paths are "
                f"given."
            )
        check_fractions(self.split)

    def _evaluation_folder(self, folder: str | list[str] | None) -> str | list[str] | None:
        if folder is None and isinstance(self.image_folder, str):
            return self.image_folder
        return folder

    def _part(self, part: str) -> list[Source]:
        assert part in SPLIT_PARTS
        assert self._sources is not None, "setup() comes before the loaders"
        return self._sources[part]

    def _blend(self, sources: Sequence[Source]) -> Blend:
        return Blend(
            [len(source) for source in sources],
            self.weights,
            seed=self.seed,
            shuffle=self.shuffle,
        )

    def _evaluation_loader(self, part: str) -> WrappedDataLoader | list:
        sources = self._part(part)
        if not sources:
            return []
        samples = EvaluationSamples(
            sources, self.encoder, self.bad_sample_log(), self.global_batch_size, self.read_watch()
        )
        # In NeMo's modes "test" and "predict" a sampler deals out uneven batches; here the
        # samples are filled up to whole batches, which only "validation" relies on.
        return self._loader(samples, "validation")

    def _loader(self, samples: TrainingSamples | EvaluationSamples, mode: str) -> WrappedDataLoader:
        return WrappedDataLoader(
            mode=mode,
            dataset=samples,
            num_workers=self.num_workers,
            pin_memory=self.pin_memory,
            persistent_workers=self.num_workers > 0,
            collate_fn=self.collator(),
        )

    def _pack(self, samples: TrainingSamples, buffer_size: int) -> PackedBatches:
        place = data_parallel_place()
        settings = PackingSettings(
            rows_per_step=self.global_batch_size,
            rows_per_micro_batch=self.micro_batch_size,
            rank=place.rank,
            ranks=place.size,
            buffer_size=buffer_size,
            room=self.room(),
            seed=self.seed,
        )
        states = {}
        if self._resumed is not None:
            states = {
                lane: LaneState(rows=rows, drawn=drawn, waiting=tuple(waiting))
                for lane, (rows, drawn, waiting) in enumerate(self._resumed["lanes"])
            }
        stream = PackedStream(
            samples, self.collator(), settings, states, decode_log=self.bad_sample_log()
        )
        return PackedBatches(stream, num_workers=self.num_workers, pin_memory=self.pin_memory)

    def _lane_states(self) -> list[tuple[int, int, list[int]]] | None:
        """Where all lanes of all ranks stand; all ranks must call this."""
        if self._packed is None:
            return None if self._resumed is None else self._resumed["lanes"]
        mine = self._packed.states_after(self.trainer.global_step - self.init_global_step)
        every: dict[int, LaneState] = {}
        for states in data_parallel_place().gather(mine):
            every |= states
        assert sorted(every) == list(range(self.global_batch_size))
        return [
            (state.rows, state.drawn, list(state.waiting))
            for _, state in sorted(every.items(), key=lambda item: item[0])
        ]

    def _order(self) -> dict[str, Any]:
        """All that the order of training depends on, as plain data."""
        packing = None
        if self.packing_buffer_size is not None:
            packing = {
                "packing_buffer_size": self.packing_buffer_size,
                "global_batch_size": self.global_batch_size,
                "seq_length": self.seq_length,
                "max_tiles": self.max_tiles,
                "max_tiles_per_row": self.max_tiles_per_row,
            }
        return {
            "packing": packing,
            "sizes": [len(source) for source in self._part("train")],
            "weights": self.weights,
            "seed": self.seed,
            "shuffle": self.shuffle,
            "split": self.split,
            "split_seed": self.split_seed,
        }

    def _check_order(self, saved: dict[str, Any]) -> None:
        current = self._order()
        for name, value in saved.items():
            if current.get(name) != value:
                raise ValueError(
                    f"The checkpoint was made with {name}={value} of the training data, but now it "
                    f"is {current.get(name)}, and the sample order could not be continued."
                )
