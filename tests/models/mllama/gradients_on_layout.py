"""Computes loss and gradients of a step in several processes, for the test that compares layouts.

    python -m torch.distributed.run --nproc-per-node 2 gradients_on_layout.py FOLDER

FOLDER holds start/ (weights under Megatron-Core's names), batches.pt (micro-batches) and
layouts.json: {name: {"tensor_model_parallel_size", ...}}. For each layout FOLDER/name gets the
gradients in the place of the weights, and loss.json.
"""

import json
import sys
from pathlib import Path

from launch import backend

backend.activate(cpu=True)

import torch  # noqa: E402
import torch.distributed as dist  # noqa: E402
from megatron.core import dist_checkpointing, parallel_state  # noqa: E402
from megatron.core.distributed import (  # noqa: E402
    DistributedDataParallel,
    DistributedDataParallelConfig,
    finalize_model_grads,
)
from megatron.core.num_microbatches_calculator import (  # noqa: E402
    init_num_microbatches_calculator,
    unset_num_microbatches_calculator,
)
from megatron.core.pipeline_parallel import get_forward_backward_func  # noqa: E402
from megatron.core.tensor_parallel import model_parallel_cuda_manual_seed  # noqa: E402
from samples import make_reference  # noqa: E402 - beside this script

from models.mllama.config import config_from_hf  # noqa: E402

PREFIX = "module."


def build(layout):
    config = config_from_hf(make_reference().config)
    for name, value in layout.items():
        setattr(config, name, value)
    config.params_dtype = config.pipeline_dtype = torch.float32
    config.perform_initialization = False
    config.use_cpu_initialization = True
    config.finalize_model_grads_func = finalize_model_grads
    return config, config.configure_model()


def sharded(module):
    """The sharded state of this rank."""
    state = module.sharded_state_dict(prefix=PREFIX)
    return {name: value for name, value in state.items() if not name.endswith("_extra_state")}


def load(module, folder):
    state = dist_checkpointing.load({"state": sharded(module)}, str(folder))["state"]
    own = {name.removeprefix(PREFIX): value for name, value in state.items()}
    module.load_state_dict(own, strict=False)


def sum_of_losses(mask):
    def reduce(output):
        losses, _ = output
        total = (losses * mask).sum()
        return total, mask.sum().to(torch.int), {"loss": total.detach()}

    return reduce


def forward_step(iterator, model):
    batch = next(iterator)
    return model(**batch), sum_of_losses(batch["loss_mask"])


def save_gradients(module, folder):
    state = sharded(module)
    for name, parameter in module.named_parameters():
        entry = state[PREFIX + name]
        entry.data = parameter.main_grad.view(entry.data.shape)
    dist_checkpointing.save({"state": state}, str(folder))


def run(folder, name, layout, batches):
    world = dist.get_world_size()
    parallel_state.initialize_model_parallel(
        tensor_model_parallel_size=layout.get("tensor_model_parallel_size", 1),
        pipeline_model_parallel_size=layout.get("pipeline_model_parallel_size", 1),
    )
    model_parallel_cuda_manual_seed(0)
    assert parallel_state.get_data_parallel_world_size() == 1, world
    init_num_microbatches_calculator(0, None, len(batches), 1, 1)
    config, module = build(layout)
    load(module, folder / "start")
    settings = DistributedDataParallelConfig(use_distributed_optimizer=False)
    wrapped = DistributedDataParallel(config, settings, module)
    wrapped.train()
    wrapped.zero_grad_buffer()
    reduced = get_forward_backward_func()(
        forward_step_func=forward_step,
        data_iterator=iter(batches),
        model=wrapped,
        num_microbatches=len(batches),
        seq_length=batches[0]["tokens"].shape[1],
        micro_batch_size=batches[0]["tokens"].shape[0],
        forward_only=False,
    )
    (folder / name).mkdir(exist_ok=True)
    dist.barrier()
    save_gradients(module, folder / name)
    if reduced:
        total = sum(float(entry["loss"]) for entry in reduced)
        (folder / name / "loss.json").write_text(json.dumps(total))
    dist.barrier()
    parallel_state.destroy_model_parallel()
    unset_num_microbatches_calculator()


if __name__ == "__main__":
    place = Path(sys.argv[1])
    dist.init_process_group("gloo")
    micro_batches = torch.load(place / "batches.pt")
    for title, degrees in json.loads((place / "layouts.json").read_text()).items():
        run(place, title, degrees, micro_batches)
    dist.destroy_process_group()
