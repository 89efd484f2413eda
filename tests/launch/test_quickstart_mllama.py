"""MLlama's main job in one piece: directory, import, fine-tuning, export, answers on both sides."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_an_exported_mllama_reads_digits_that_it_has_never_seen(tmp_path):
    out = tmp_path / "mllama"
    command = [sys.executable, "-m", "launch.quickstart", "--family", "mllama", "--out", str(out)]
    done = subprocess.run(
        command,
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=1100,
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    figures = json.loads((out / "report.json").read_text(encoding="utf-8"))
    assert figures["single_questions"] == 360
    assert figures["single_exact_match"] >= 0.95
    # Near chance when every question gets another digit's image: the answers come from the image.
    assert figures["single_shuffled_exact_match"] < 0.25
    assert figures["megatron_equal_answers"] == 1.0
    assert figures["megatron_questions"] == 40
    assert figures["max_logit_difference"] <= 1e-4
    assert (out / "report.html").is_file()
