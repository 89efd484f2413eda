"""From opened shards to the loaders of training and of evaluation."""

from collections.abc import Sequence

from megatron.energon import WorkerConfig

from datamodules.energon_shards import ShardSet, attach
from datamodules.energon_stream import EvaluationBatches, NamedWatch, ReadingPlace, TrainingBatches
from datamodules.energon_task import ConversationTask


def training_batches(
    shards: Sequence[ShardSet],
    task: ConversationTask,
    worker_config: WorkerConfig,
    *,
    micro_batch_size: int,
    shuffle_buffer_size: int,
    packing_buffer_size: int | None,
    remembered: int,
    start: ReadingPlace | None = None,
    pin_memory: bool = False,
) -> TrainingBatches:
    """Makes the endless loader of one rank over blended shards.

    Args:
        shards: The blend, opened with the same `worker_config`.
        task: Makes micro-batches.
        worker_config: Whose part is read, by how many workers, with which seed.
        micro_batch_size: Samples per micro-batch.
        shuffle_buffer_size: Samples that each worker draws the next one from.
        packing_buffer_size: Samples that a packed row is chosen from; None for no packing.
        remembered: For so many micro-batches back the place can be told.
        start: Where to begin; None begins at the beginning.
        pin_memory: Whether tensors are pinned.

    Raises:
        ValueError: A reader would have no sample, or `start` is no place of these shards.
    """
    readers = worker_config.world_size * max(1, worker_config.num_workers)
    for each in shards:
        if len(each) < readers:
            raise ValueError(
                f"The training split of {each.source} has {len(each)} sample(s), but must have one "
                f"for each of {readers} reader(s), that is data-parallel ranks times "
                f"num_workers={worker_config.num_workers}."
            )
    attach(shards, task)
    dataset = task.build_train_datasets(
        datasets=[(each.factory, each.share) for each in shards],
        worker_config=worker_config,
        batch_size=micro_batch_size,
        shuffle_buffer_size=shuffle_buffer_size,
        packing_buffer_size=packing_buffer_size,
    )
    return TrainingBatches(
        dataset,
        pin_memory=pin_memory,
        remembered=remembered,
        start=start,
        watch=_watch(shards, task),
    )


def evaluation_batches(
    shards: Sequence[ShardSet],
    task: ConversationTask,
    worker_config: WorkerConfig,
    *,
    micro_batch_size: int,
    multiple_of: int,
    pin_memory: bool = False,
) -> EvaluationBatches:
    """Makes the finite loader of one rank, of the same length on all ranks.

    Args:
        shards: The data sets, one after the other, opened with the same `worker_config`.
        task: Makes micro-batches.
        worker_config: Whose part is read, by how many workers.
        micro_batch_size: Samples per micro-batch.
        multiple_of: The number of micro-batches is rounded up to this.
        pin_memory: Whether tensors are pinned.
    """
    attach(shards, task)
    dataset = task.build_val_datasets(
        datasets=[each.factory for each in shards],
        worker_config=worker_config,
        batch_size=micro_batch_size,
    )
    workers = max(1, worker_config.num_workers)
    # Energon deals every data set out to the workers of all ranks as evenly as it goes.
    samples = sum(-(-len(each) // (workers * worker_config.world_size)) for each in shards)
    length = workers * -(-samples // micro_batch_size)
    return EvaluationBatches(
        dataset,
        length=-(-length // multiple_of) * multiple_of,
        filler=task.filler_batch,
        pin_memory=pin_memory,
        watch=_watch(shards, task),
    )


def _watch(shards: Sequence[ShardSet], task: ConversationTask) -> NamedWatch:
    return NamedWatch(watch=task.watch, source=", ".join(each.source for each in shards))
