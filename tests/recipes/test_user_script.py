"""A ten-line script in the manner of NeMo's own recipes, with the user's own data module."""

import subprocess
import sys
import textwrap

import pytest

from recipes.steps_file import STEPS_FILE, read_steps

MY_DATA = """
import lightning.pytorch as pl
import torch
from nemo.lightning.io.mixin import IOMixin
from nemo.lightning.pytorch.plugins import MegatronDataSampler


class Copies(torch.utils.data.Dataset):
    def __len__(self):
        return 1000

    def __getitem__(self, index):
        return torch.arange(16) % 7 + index % 3

def collate(rows):
    tokens = torch.stack(rows)
    labels = tokens.roll(-1, dims=1)
    return {
        "tokens": tokens,
        "labels": labels,
        "loss_mask": torch.ones(tokens.shape),
        "position_ids": torch.arange(16).expand(tokens.shape),
    }


class MyDataModule(pl.LightningDataModule, IOMixin):
    def __init__(self, global_batch_size: int = 4):
        super().__init__()
        # NeMo's finetune looks at these three of any data module.
        self.seq_length, self.micro_batch_size, self.global_batch_size = 16, 2, global_batch_size
        self.data_sampler = MegatronDataSampler(
            seq_len=16, micro_batch_size=2, global_batch_size=global_batch_size
        )

    def train_dataloader(self):
        return torch.utils.data.DataLoader(Copies(), collate_fn=collate)
"""

SCRIPT = """
import nemo_run as run
from my_data import MyDataModule
from recipes.nvila import finetune_recipe

if __name__ == "__main__":
    recipe = finetune_recipe(
        name="mine", dir="{folder}/runs", init_from="{start}", size="nano", num_gpus_per_node=2
    )
    recipe.data = run.Config(MyDataModule, global_batch_size=8)
    recipe.trainer.max_steps = 3
    recipe.optim.config.lr = 5e-4
    run.run(recipe, executor=run.LocalExecutor(ntasks_per_node=2, launcher="torchrun"))
"""


@pytest.mark.slow
def test_a_script_with_fields_overridden_and_data_of_its_own(nano_start, tmp_path, project_root):
    (tmp_path / "my_data.py").write_text(textwrap.dedent(MY_DATA))
    script = SCRIPT.format(folder=tmp_path, start=nano_start["init_from"])
    (tmp_path / "train.py").write_text(script)
    finished = subprocess.run(
        [sys.executable, "-m", "cpu_backend", "train.py"],
        cwd=tmp_path,
        env=project_root.environment | {"NEMORUN_HOME": str(tmp_path / "nemo_run")},
        capture_output=True,
        text=True,
        timeout=600,
    )
    rows = read_steps(tmp_path / "runs" / "mine" / STEPS_FILE)
    assert [row["step"] for row in rows] == [0, 1, 2], finished.stdout[-3000:] + finished.stderr
    assert [row["consumed_samples"] for row in rows][1:] == [16, 24]
    assert rows[2]["loss"] < rows[0]["loss"]
    assert len(list((tmp_path / "runs" / "mine" / "checkpoints").iterdir())) == 2
