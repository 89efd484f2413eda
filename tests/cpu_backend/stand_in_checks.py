"""Checks that CUDA's names work on the CPU; run with `python -m cpu_backend` by test_switch.py."""

import concurrent.futures
import importlib.util
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

import cpu_backend


def assert_on_cpu(*tensors):
    assert [tensor.device.type for tensor in tensors] == ["cpu"] * len(tensors)


def check_device_arguments():
    x = torch.ones(2)
    index = torch.cuda.current_device()
    assert index == 0
    for device in ("cuda", "cuda:0", index, torch.device("cuda"), torch.device("cuda", index)):
        assert_on_cpu(
            torch.empty(2, device=device),
            torch.tensor([1.0], device=device),
            torch.arange(3, device=device),
            torch.zeros_like(x, device=device),
            torch.rand(2, device=device, pin_memory=True),
            x.to(device),
            x.to(device=device, dtype=torch.float64),
            x.new_zeros(2, device=device),
            torch.nn.Linear(2, 2, device=device).weight,
            torch.nn.Linear(2, 2).to(device).weight,
        )
        with torch.device(device):
            assert_on_cpu(torch.zeros(2))
    assert x.cuda() is x
    assert x.pin_memory() is x
    assert x.cuda(non_blocking=True).to("cuda", non_blocking=True) is x
    module = torch.nn.Linear(2, 2)
    assert module.cuda() is module
    # What names no GPU is left alone.
    assert torch.empty(2, device="meta").device.type == "meta"
    assert x.to("meta").device.type == "meta"
    with torch.device("meta"):
        assert torch.zeros(2).device.type == "meta"
    assert x.to(torch.float64).dtype == torch.float64
    assert x.to(torch.ones(1, dtype=torch.int64)).dtype == torch.int64


def check_threads_and_forks():
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        assert_on_cpu(pool.submit(lambda: torch.zeros(2, device="cuda")).result())
    loader = torch.utils.data.DataLoader(
        [torch.ones(1)] * 4,
        num_workers=1,
        pin_memory=True,
        collate_fn=lambda samples: torch.stack(samples).to("cuda"),
    )
    assert sum(batch.sum().item() for batch in loader) == 4.0


def check_loading(folder):
    path = folder / "tensor.pt"
    torch.save(torch.ones(2), path)
    assert_on_cpu(torch.load(path, map_location="cuda", weights_only=True))
    assert_on_cpu(torch.load(path, weights_only=True))


@torch.jit.script
def scripted(n: int):
    return torch.zeros(n) + torch.arange(n) + torch.tensor([1.0])


def check_random_numbers():
    torch.cuda.manual_seed(7)
    state = torch.cuda.get_rng_state()
    one = torch.rand(3)
    torch.cuda.set_rng_state(state)
    assert torch.equal(torch.rand(3), one)
    assert torch.cuda.initial_seed() == 7
    torch.cuda.random.set_rng_state_all([state])
    assert torch.equal(torch.rand(3), one)
    torch.manual_seed(8)
    assert torch.equal(torch.cuda.get_rng_state_all()[0], torch.get_rng_state())
    with torch.random.fork_rng():
        torch.rand(1)
    assert torch.equal(torch.cuda.default_generators[0].get_state(), torch.get_rng_state())


def check_runtime():
    cuda = torch.cuda
    assert (cuda.is_available(), cuda.is_initialized(), cuda.device_count()) == (False, True, 1)
    cuda.set_device(0)
    cuda.synchronize()
    cuda.empty_cache()
    stream = cuda.Stream()
    stream.wait_stream(cuda.current_stream())
    start, end = cuda.Event(enable_timing=True), cuda.Event(enable_timing=True)
    with cuda.stream(stream), cuda.device(0):
        start.record()
        time.sleep(0.01)
        stream.record_event(end)
    assert 10 <= start.elapsed_time(end) < 5000
    torch.ones(1).record_stream(stream)
    with cuda.nvtx.range("name"):
        pass
    block = torch.ones(50_000_000)
    assert cuda.max_memory_allocated() >= cuda.memory_allocated() - 2**20 > 200_000_000
    assert cuda.memory_stats()["allocated_bytes.all.peak"] >= block.nbytes
    free, total = cuda.mem_get_info()
    assert 0 < free < total
    assert cuda.get_device_properties(0).total_memory == total
    assert torch.cuda.FloatTensor([1.5]).item() == 1.5


def check_tensor_types():
    """Only the modules of the optimizers are told CUDA's names."""
    x = torch.ones(1)
    assert x.type() == "torch.FloatTensor"
    assert x.type(torch.float64).dtype == torch.float64
    for module in ("megatron.core.optimizer.clip_grads", "nemo.core.optim.any"):
        scope = {"__name__": module, "x": x, "y": x.bfloat16()}
        exec("names = x.type(), y.type(), x.type(y.dtype).type()", scope)
        halves = ["torch.cuda.BFloat16Tensor"] * 2
        assert scope["names"] == ("torch.cuda.FloatTensor", *halves)
    scope = {"__name__": "megatron.core.distributed.any", "x": x}
    exec("name = x.type()", scope)
    assert scope["name"] == "torch.FloatTensor"


def check_autocast():
    x = torch.ones(2, 2, requires_grad=True)
    with torch.autocast("cuda", dtype=torch.bfloat16):
        assert torch.is_autocast_enabled("cuda")
        assert torch.get_autocast_dtype("cuda") == torch.bfloat16
        assert (x @ x).dtype == torch.bfloat16
    assert not torch.is_autocast_enabled("cuda")

    class Product(torch.autograd.Function):
        @staticmethod
        @torch.amp.custom_fwd(device_type="cuda")
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return x @ x

        @staticmethod
        @torch.amp.custom_bwd(device_type="cuda")
        def backward(ctx, gradient):
            (x,) = ctx.saved_tensors
            return gradient @ x.T + x.T @ gradient

    with torch.autocast("cuda", dtype=torch.bfloat16):
        Product.apply(x).float().sum().backward()
    assert torch.equal(x.grad, torch.full((2, 2), 4.0))


def check_compilation_is_off():
    assert torch.compile(check_runtime) is check_runtime


def check_collectives(folder):
    dist.init_process_group(
        backend="nccl",
        init_method=f"file://{folder}/meeting",
        rank=0,
        world_size=1,
        device_id=torch.device("cuda:0"),
    )
    group = dist.new_group([0], backend="cpu:gloo,cuda:nccl", pg_options=object())
    assert dist.get_backend() == dist.get_backend(group) == "gloo"
    x = torch.arange(4.0)
    dist.all_reduce(x, op=dist.ReduceOp.AVG, group=group)
    assert x.tolist() == [0.0, 1.0, 2.0, 3.0]
    output = torch.empty(4, device="cuda")
    dist.reduce_scatter_tensor(output, x, op=dist.ReduceOp.AVG, async_op=True).wait()
    assert torch.equal(output, x)
    dist.barrier(device_ids=[torch.cuda.current_device()])
    dist.barrier(group)
    dist.destroy_process_group()


def check_hidden_modules():
    """As absent both to who imports them and to who asks whether they could be imported."""
    for name in ("amp_C", "transformer_engine_torch"):
        assert importlib.util.find_spec(name) is None
        with pytest.raises(ModuleNotFoundError, match=name):
            __import__(name)


def check_lightning():
    import lightning.pytorch as pl

    for accelerator in ("gpu", "auto", "cpu"):
        trainer = pl.Trainer(
            accelerator=accelerator, devices=1, logger=False, enable_checkpointing=False
        )
        assert trainer.strategy.root_device.type == "cpu"
        assert type(trainer.accelerator).__name__ == "CPUAccelerator"
    cpu_backend.disable()
    with pytest.raises(pl.utilities.exceptions.MisconfigurationException, match="gpu"):
        pl.Trainer(accelerator="gpu", logger=False, enable_checkpointing=False)


def check_children():
    """A child of this program switches the backend on before it imports Megatron-Core."""
    code = "import sys, cpu_backend; print('torch' in sys.modules, cpu_backend.is_enabled())"
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert child.stdout.split() == ["False", "False"], child
    assert os.environ["NEMO_VLM_CPU_BACKEND"] == "1"


def main():
    assert sys.argv[1:] == ["--flag", "value"]
    assert cpu_backend.is_enabled()
    folder = Path(os.environ["CHECK_FOLDER"])
    check_device_arguments()
    check_threads_and_forks()
    check_loading(folder)
    assert scripted(3).tolist() == [1.0, 2.0, 3.0]
    check_random_numbers()
    check_runtime()
    check_tensor_types()
    check_autocast()
    check_compilation_is_off()
    check_collectives(folder)
    check_hidden_modules()
    check_children()
    check_lightning()
    print("all checked")


if __name__ == "__main__":
    main()
