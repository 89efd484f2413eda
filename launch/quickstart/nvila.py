"""The quickstart of NVILA: two parents become one model, trained in three stages."""

from __future__ import annotations

from functools import partial
from typing import Any

from launch.quickstart.shared_phases import DATA, EXPORT, VERIFY, evaluate_phase, train
from launch.quickstart.workspace import Phase, QuickstartFamily, Workspace

STAGES = ("align", "pretrain", "sft")


def _write_parents(workspace: Workspace) -> None:
    from launch.quickstart.parents import train_tokenizer, write_qwen2, write_siglip

    parents = workspace.clear("parents")
    write_siglip(parents / "siglip")
    write_qwen2(parents / "qwen2", train_tokenizer())


def _assemble(workspace: Workspace) -> dict[str, Any]:
    from launch import backend

    backend.activate(cpu=True)
    from converters.assemble import assemble
    from converters.nvila_assembly import NvilaAssembly

    parents = workspace.folder / "parents"
    return assemble(
        parents / "qwen2",
        parents / "siglip",
        workspace.clear("assembled"),
        NvilaAssembly(max_tiles=4),
    )


def _train(workspace: Workspace, stage: str) -> dict[str, Any]:
    from launch import backend

    backend.activate(cpu=True)
    from recipes.nvila.recipe import finetune_recipe

    recipe = finetune_recipe(dir=str(workspace.folder), stage=stage, size="nano")
    files = workspace.digits
    if stage != "sft":
        return train(workspace, recipe, [files.train_singles])
    # 1, 2, 3 and 4 digits equally: a quarter singles, the strips hold the other three lengths.
    return train(workspace, recipe, [files.train_singles, files.train_strips], [0.25, 0.75])


NVILA = QuickstartFamily(
    name="nvila",
    title="Quickstart: a nano NVILA reads digits",
    phases=(
        DATA,
        Phase(
            name="parents",
            description="SigLIP and Qwen2.5 directories, random weights",
            work=_write_parents,
        ),
        Phase(
            name="assemble",
            description="parents + fresh projector -> NeMo checkpoint",
            work=_assemble,
        ),
        *(
            Phase(
                name=stage,
                description=f"stage {stage} through NeMo-Run",
                work=partial(_train, stage=stage),
            )
            for stage in STAGES
        ),
        EXPORT,
        VERIFY,
        evaluate_phase("single", "strip3"),
    ),
    stages=STAGES,
    wanted={"single_exact_match": 0.95, "strip3_exact_match": 0.85},
)
