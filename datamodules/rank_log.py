"""The list of bad samples of a run of many processes."""

import os

from megatron.core import parallel_state

from datamodules.bad_samples import BadSampleLog


def rank_log(path: str | os.PathLike[str] | None, max_in_a_row: int) -> BadSampleLog:
    """Returns this process's list of bad samples, written once per sample and not once per rank.

    Ranks of one model-parallel group read the same samples, so only the first of them writes.

    Args:
        path: The file; None only counts.
        max_in_a_row: So many bad samples one after the other are still accepted.
    """
    if parallel_state.model_parallel_is_initialized() and (
        parallel_state.get_tensor_model_parallel_rank()
        or parallel_state.get_pipeline_model_parallel_rank()
        or parallel_state.get_context_parallel_rank()
    ):
        path = None
    return BadSampleLog(path, max_in_a_row)
