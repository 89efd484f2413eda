"""What the trainer's limits mean for training data that have no end, counted in steps."""

from typing import Any

from lightning.pytorch.trainer.states import TrainerFn


def count_limits_in_steps(trainer: Any, micro_batches: int) -> None:
    """Makes the trainer's limits count steps.

    Lightning compares `limit_val_batches` and the sanity steps with micro-batches, and takes a
    fractional `val_check_interval` of the loader's length, which has no end here.

    Args:
        trainer: The trainer.
        micro_batches: Micro-batches of one rank in a step.

    Raises:
        ValueError: A limit would end or repeat the training data.
    """
    if trainer.state.fn == TrainerFn.FITTING:
        _check_training_limits(trainer)
        if isinstance(trainer.val_check_interval, float):
            steps = int(trainer.max_steps * trainer.val_check_interval)
            trainer.val_check_interval = max(1, steps)
    if isinstance(trainer.limit_val_batches, int):
        trainer.limit_val_batches *= micro_batches
    if isinstance(trainer.limit_test_batches, int):
        trainer.limit_test_batches *= micro_batches
    trainer.num_sanity_val_steps *= micro_batches


def _check_training_limits(trainer: Any) -> None:
    if trainer.max_steps < 1:
        raise ValueError(
            f"max_steps of the trainer is {trainer.max_steps}, but must be at least 1, because "
            f"training data have no end."
        )
    limit = trainer.limit_train_batches
    if isinstance(limit, float) and limit == 1.0:
        return
    if isinstance(limit, float) or limit < trainer.max_steps:
        raise ValueError(
            f"limit_train_batches of the trainer is {limit}, but must be 1.0: an epoch that ends "
            f"early would read the same samples again."
        )
    trainer.limit_train_batches = 1.0
