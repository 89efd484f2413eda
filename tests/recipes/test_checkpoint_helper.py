"""The process that collects the results of a checkpoint's writers ends when its rank is killed."""

import subprocess
import sys
import time

import psutil

RANK = """
import os, signal
from megatron.core.dist_checkpointing.strategies import filesystem_async
from recipes.checkpoint_helper import start_checkpoint_helper

if __name__ == "__main__":
    for _ in range(2):  # the second time there is one
        start_checkpoint_helper()
    queue = filesystem_async._get_write_results_queue()
    queue.put("sent")
    helper = filesystem_async._manager._process.pid
    libraries = open(f"/proc/{helper}/maps").read()
    print(queue.get(), helper, "libtorch" in libraries, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_it_is_small_and_ends_with_its_rank(project_root, tmp_path):
    script = tmp_path / "rank.py"
    script.write_text(RANK)
    rank = subprocess.Popen(
        [sys.executable, str(script)],
        env=project_root.environment,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert rank.stdout is not None
    word, process_id, has_torch = rank.stdout.readline().split()
    rank.wait(60)
    assert word == "sent"
    assert has_torch == "False"  # nor what else the rank's script has imported
    end = time.monotonic() + 20
    while psutil.pid_exists(int(process_id)) and time.monotonic() < end:
        time.sleep(0.05)
    assert not psutil.pid_exists(int(process_id))
