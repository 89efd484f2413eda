"""What Energon does with a sample: encode and collate, skip what is bad, hide nothing."""

from collections.abc import Sequence
from functools import partial
from typing import Any, TypeAlias

from megatron.energon import (
    Cooker,
    SimilarityInterleavedSample,
    SkipSample,
    TaskEncoder,
    VQASample,
    WorkerConfig,
)
from megatron.energon.errors import SYSTEM_EXCEPTIONS
from megatron.energon.flavors.crude import CrudeSample
from megatron.energon.wrappers import BatchDataset, MapDataset
from megatron.energon.wrappers.base import get_sample_restore_key
from webdataset.autodecode import DecodingError

from datamodules.bad_samples import BadSampleLog
from datamodules.dataset import FILLER_KEY
from datamodules.energon_images import ShardImages
from datamodules.energon_packing import RowPacking, ShardPlan
from datamodules.packing import Room
from datamodules.read_watch import ReadWatch
from datamodules.row_decoding import Decoding, decode_row
from datamodules.sample_encoder import Collator, SampleEncoder
from sample_loaders.conversation import IMAGE_PLACEHOLDER
from sample_loaders.energon import (
    RECORD_PART,
    ShardSample,
    cook_parts,
    read_matched,
    read_vqa,
)
from sample_loaders.errors import BadSample, Reason

ReadableSample: TypeAlias = CrudeSample | VQASample | SimilarityInterleavedSample

# Under this name each sample's subflavors hold the data set that it came from.
SOURCE = "__source__"


class ConversationTask(TaskEncoder):
    """Makes micro-batches of the samples of shards.

    Energon prints and drops every sample whose encoding raises anything at all. Here a sample is
    dropped for one reason only, `BadSample`, which is listed and counted; all else stops the run.

    Args:
        encoder: Encodes conversations.
        collate: Makes a micro-batch of encoded samples.
        log: Takes the bad samples.
        fill: For evaluation: a bad sample becomes a filler, and a last micro-batch is filled up.
        room: Of a packed row.
        decode_log: Takes the samples of packed rows whose images are damaged; those that cannot be
            planned go to `log`, so that "in a row" means something in each.
        watch: Ends reads that hang.
        image_token: What stands for an image in the text of a record.
        image_following_text: Whether an image that is matched to a text comes after it.
    """

    # Energon asks for a cooker before it takes crude data; ours is called by `encode_sample`.
    cookers = (Cooker(cook=cook_parts),)

    def __init__(
        self,
        encoder: SampleEncoder[Any],
        collate: Collator,
        log: BadSampleLog,
        *,
        fill: bool,
        room: Room,
        decode_log: BadSampleLog,
        watch: ReadWatch | None = None,
        image_token: str = IMAGE_PLACEHOLDER,
        image_following_text: bool = True,
    ) -> None:
        self.image_token = image_token
        self.image_following_text = image_following_text
        self.encoder = encoder
        self.collate = collate
        self.log = log
        self.fill = fill
        self.room = room
        self.decode_log = decode_log
        self.watch = watch or ReadWatch()
        self.packs = False
        self.micro_batch_size = 0

    def encode_sample(self, sample: ReadableSample) -> Any:
        """Encodes a sample, or plans it where rows are packed.

        Raises:
            SkipSample: It is bad, and fillers are not asked for.
            TooManyBadSamples: Too many in a row could not be used.
        """
        key, source = _origin(sample)
        encoded: Any
        try:
            loaded = self._load(sample, key, source)
            images = ShardImages(loaded.images)
            if self.packs:
                plan = self.encoder.plan(loaded.sample, images)
                encoded = ShardPlan(
                    plan=plan,
                    images=images,
                    source=source,
                    __restore_key__=get_sample_restore_key(sample),
                )
            else:
                encoded = self.encoder.encode(loaded.sample, images)
        except BadSample as error:
            self.log.skip(key, source, error)
            if self.fill:
                return self.encoder.filler(key)
            raise SkipSample from None
        except SYSTEM_EXCEPTIONS as error:
            # Energon would replace it by an error that prints the whole sample with its images.
            raise RuntimeError(f"Encoding the sample {key} failed: {error!r}.") from error
        self.log.accept()
        return encoded

    def _load(self, sample: ReadableSample, key: str, source: str) -> ShardSample:
        if isinstance(sample, CrudeSample):
            return cook_parts(sample, key, source, self.image_token)
        if isinstance(sample, SimilarityInterleavedSample):
            return read_matched(
                sample.images,
                sample.texts,
                sample.matched_text_indices,
                image_following_text=self.image_following_text,
                key=key,
                source=source,
            )
        assert isinstance(sample, VQASample), f"a {type(sample).__name__} went past the check"
        return read_vqa(
            sample.image,
            sample.context,
            sample.answers,
            sample.answer_weights,
            key=key,
            source=source,
            image_token=self.image_token,
        )

    def decode_row(self, row: Sequence[ShardPlan]) -> list[Any]:
        """Decodes the samples of a packed row; where an image is damaged, the row gets shorter.

        Raises:
            TooManyBadSamples: Too many in a row could not be used.
        """
        decodings = (
            Decoding(
                key=sample.plan.key, source=sample.source, decode=partial(self._decode, sample)
            )
            for sample in row
        )
        return decode_row(decodings, self.decode_log, partial(self.encoder.filler, FILLER_KEY))

    def _decode(self, sample: ShardPlan) -> Any:
        try:
            return self.encoder.decode(sample.plan, sample.images)
        except SYSTEM_EXCEPTIONS as error:
            raise RuntimeError(f"Decoding {sample.plan.key} failed: {error!r}.") from error

    def batch_rows(self, rows: list[list[Any]]) -> dict[str, Any]:
        """Collates packed rows."""
        try:
            return self.collate.packed(rows)
        except SYSTEM_EXCEPTIONS as error:
            keys = ", ".join(sample.key for row in rows for sample in row)
            raise RuntimeError(f"Collating the samples {keys} failed: {error!r}.") from error

    def batch(self, samples: list[Any]) -> dict[str, Any]:
        """Collates samples; in evaluation a short micro-batch is filled up."""
        missing = self.micro_batch_size - len(samples)
        assert missing == 0 or self.fill, f"{missing} samples are missing in a training batch"
        try:
            return self.collate([*samples, *[self.encoder.filler(FILLER_KEY)] * missing])
        except SYSTEM_EXCEPTIONS as error:
            keys = ", ".join(sample.key for sample in samples)
            raise RuntimeError(f"Collating the samples {keys} failed: {error!r}.") from error

    def filler_batch(self) -> dict[str, Any]:
        """Returns a micro-batch in which nothing is learnt."""
        return self.batch([])

    def skip_undecodable(self, source: str, error: Exception, key: str | None) -> None:
        """Handles what goes wrong where the data set itself decodes parts or calls its loader.

        Raises:
            TooManyBadSamples: Too many in a row could not be used.
            Exception: The given one, unless it is about a part that cannot be decoded.
        """
        if isinstance(error, BadSample):
            bad = error
        elif isinstance(error, DecodingError):
            key = error.key
            reason = Reason.INVALID_JSON if error.k == RECORD_PART else Reason.UNREADABLE_IMAGE
            bad = BadSample(reason, f"The part {error.k} cannot be decoded: {error.__cause__}.")
        else:
            raise error
        self.log.skip(_full_key(source, key or "unknown"), source, bad)

    def build_cook_crude_sample(self, dataset: Any, *, worker_config: WorkerConfig) -> Any:
        """Leaves cooking to `encode_sample`, where bad samples are handled."""
        del worker_config
        return dataset

    def build_encode_sample(self, dataset: Any, *, worker_config: WorkerConfig) -> Any:
        """Adds the step that encodes."""
        return MapDataset(
            dataset,
            self.encode_sample,
            error_handler=_stop,
            stateless_map_fn=True,
            worker_config=worker_config,
        )

    def build_batch(
        self,
        dataset: Any,
        *,
        batch_size: int | None,
        batch_drop_last: bool = False,
        packing_buffer_size: int | None = None,
        worker_config: WorkerConfig,
    ) -> Any:
        """Adds the steps that pack, where that is asked for, and collate."""
        assert batch_size is not None
        assert not batch_drop_last
        self.micro_batch_size = batch_size
        self.packs = packing_buffer_size is not None
        if packing_buffer_size is not None:
            dataset = RowPacking(
                dataset,
                packing_buffer_size,
                self.room,
                self.decode_row,
                worker_config=worker_config,
            )
        return BatchDataset(
            dataset,
            batch_size,
            self.batch_rows if self.packs else self.batch,
            batcher_stateless=True,
            error_handler=_stop,
            worker_config=worker_config,
        )


def _stop(error: Exception, _sample: object) -> None:
    """Energon's handlers return to go on; this one does not."""
    raise error


def _full_key(source: str, key: str) -> str:
    return f"{source}/{key}"


def _origin(sample: ReadableSample) -> tuple[str, str]:
    """Returns the sample's key, with data set and shard, and its data set."""
    if isinstance(sample, CrudeSample):
        key, subflavors = sample["__key__"], sample["__subflavors__"]
    else:
        key, subflavors = sample.__key__, sample.__subflavors__
    source = (subflavors or {}).get(SOURCE, "joined")
    return _full_key(source, key), source
