"""Trains a tiny Megatron-Core GPT in several layouts; run by test_megatron_training.py.

It never names the backend: the environment that the test gives it switches the backend on. Nothing
is imported at the top: saving a checkpoint starts a process that imports this file again.
"""


def main():
    import json
    import os
    import sys
    import tempfile
    from pathlib import Path

    import torch
    import torch.distributed as dist
    from megatron.core.extensions import transformer_engine as extensions
    from tiny_gpt import Case, run_case

    cases, out = json.loads(sys.argv[1]), Path(sys.argv[2])
    assert extensions.HAVE_TE
    assert sys.modules["cpu_backend"].is_enabled()
    assert not torch.cuda.is_available()
    rank, world_size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    meeting = os.environ.get("MEETING_FILE", f"{out}.meeting")
    # Asked for with NCCL, as a recipe does.
    dist.init_process_group(
        "nccl", init_method=f"file://{meeting}", rank=rank, world_size=world_size
    )
    assert dist.get_backend() == "gloo"
    results = {}
    for name, options in cases.items():
        folder = [tempfile.mkdtemp(dir=out.parent) if rank == 0 else None]
        dist.broadcast_object_list(folder, src=0)
        results[name] = run_case(Case(**options), folder[0])
    if rank == 0:
        out.write_text(json.dumps(results))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
