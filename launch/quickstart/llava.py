"""The quickstarts of LLaVA and LLaVA-JP: two parents become one model, trained in two stages."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from launch.quickstart.shared_phases import DATA, EXPORT, VERIFY, evaluate_phase, train
from launch.quickstart.workspace import Phase, QuickstartFamily, Workspace

STAGES = ("pretrain", "sft")


def _write_llava_parents(workspace: Workspace) -> None:
    from launch.quickstart.parents import train_plain_tokenizer, write_clip, write_llama

    parents = workspace.clear("parents")
    write_clip(parents / "vision")
    write_llama(parents / "llm", train_plain_tokenizer("v1"))


def _write_llava_jp_parents(workspace: Workspace) -> None:
    from launch.quickstart.parents import train_plain_tokenizer, write_clip, write_gpt2

    parents = workspace.clear("parents")
    write_clip(parents / "vision")
    write_gpt2(parents / "llm", train_plain_tokenizer("llava_jp"))


def _assemble(workspace: Workspace, rules: Mapping[str, Any]) -> dict[str, Any]:
    from launch import backend

    backend.activate(cpu=True)
    from converters.assemble import assemble
    from converters.llava_assembly import LlavaAssembly

    parents = workspace.folder / "parents"
    return assemble(
        parents / "llm", parents / "vision", workspace.clear("assembled"), LlavaAssembly(**rules)
    )


def _train(workspace: Workspace, family: str, stage: str) -> dict[str, Any]:
    from launch import backend

    backend.activate(cpu=True)
    import recipes.llava
    import recipes.llava_jp

    recipe = {
        "llava": recipes.llava.finetune_recipe,
        "llava_jp": partial(recipes.llava_jp.finetune_recipe, vision="clip"),
    }[family](dir=str(workspace.folder), stage=stage, size="nano")
    files = workspace.digits
    if stage == "pretrain":
        return train(workspace, recipe, [files.train_singles])
    # A single digit is seen three times as large as those of a strip, and is learnt by itself.
    return train(workspace, recipe, [files.train_singles, files.train_strips], [0.4, 0.6])


def _family(name: str, title: str, parents: Phase, **rules: str) -> QuickstartFamily:
    return QuickstartFamily(
        name=name,
        title=title,
        phases=(
            DATA,
            parents,
            Phase(
                name="assemble",
                description="parents + fresh projector -> NeMo checkpoint",
                work=partial(_assemble, rules=rules),
            ),
            *(
                Phase(
                    name=stage,
                    description=f"stage {stage} through NeMo-Run",
                    work=partial(_train, family=name, stage=stage),
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


LLAVA = _family(
    "llava",
    "Quickstart: a nano LLaVA reads digits",
    Phase(
        name="parents",
        description="CLIP and Llama directories, random weights",
        work=_write_llava_parents,
    ),
    conversation_template="v1",
    # The middle of a strip of digits would be one of them.
    image_aspect_ratio="pad",
)
LLAVA_JP = _family(
    "llava_jp",
    "Quickstart: a nano LLaVA-JP reads digits",
    Phase(
        name="parents",
        description="CLIP and GPT-2 directories, random weights",
        work=_write_llava_jp_parents,
    ),
    conversation_template="llava_jp",
    image_aspect_ratio="pad",
)
