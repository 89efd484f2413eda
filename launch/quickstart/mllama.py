"""The quickstart of MLlama: a directory like the published ones, imported and fine-tuned."""

from __future__ import annotations

import json
from typing import Any

from launch.quickstart.evaluate import MAX_NEW_TOKENS, questions_of
from launch.quickstart.shared_phases import (
    DATA,
    EVALUATION_FILE,
    EXPORT,
    VERIFY,
    evaluate_phase,
    train,
)
from launch.quickstart.workspace import Phase, QuickstartFamily, Workspace

COMPARED_PER_TASK = 40
_TASKS = ("single",)


def _write_parent(workspace: Workspace) -> None:
    from launch.quickstart.mllama_parent import write_mllama

    write_mllama(workspace.clear("parent"))


def _import(workspace: Workspace) -> dict[str, Any]:
    from launch import backend

    backend.activate(cpu=True)
    from converters.import_hf import import_checkpoint

    return import_checkpoint("mllama", workspace.folder / "parent", workspace.clear("imported"))


def _train(workspace: Workspace) -> dict[str, Any]:
    from launch import backend

    backend.activate(cpu=True)
    from recipes.mllama import finetune_recipe

    folder = workspace.folder
    recipe = finetune_recipe(
        dir=str(folder), name="sft", size="nano", init_from=str(folder / "imported")
    )
    return train(workspace, recipe, [workspace.digits.train_singles])


def _compare_answers(workspace: Workspace) -> dict[str, Any]:
    from launch import backend

    backend.activate(cpu=True)
    from launch.quickstart.megatron_greedy import equal_share, greedy_answers, read_conversations
    from models.checkpoint_paths import find_checkpoint

    evaluation = (workspace.folder / EVALUATION_FILE).read_text(encoding="utf-8")
    expected: dict[str, str] = {}
    conversations = []
    for task, answers in json.loads(evaluation)["answers"].items():
        expected |= answers
        questions = questions_of(task, workspace.digits)
        conversations += read_conversations(questions, COMPARED_PER_TASK)
    found = greedy_answers(
        find_checkpoint(workspace.folder / "sft"),
        conversations,
        workspace.digits.images,
        MAX_NEW_TOKENS,
    )
    for key, text in found.items():
        print(f"{key}: {text!r}, exported {expected[key]!r}")
    return {
        "megatron_equal_answers": equal_share(found, expected),
        "megatron_questions": len(found),
    }


MLLAMA = QuickstartFamily(
    name="mllama",
    title="Quickstart: a nano MLlama reads digits",
    phases=(
        DATA,
        Phase(
            name="parent",
            description="a Llama 3.2 Vision directory, random weights",
            work=_write_parent,
        ),
        Phase(name="import", description="Hugging Face directory -> NeMo checkpoint", work=_import),
        Phase(name="sft", description="fine-tuning through NeMo-Run", work=_train),
        EXPORT,
        VERIFY,
        evaluate_phase(*_TASKS),
        Phase(
            name="compare",
            description="the Megatron-Core model gives the exported one's answers",
            work=_compare_answers,
            reported=True,
        ),
    ),
    stages=("sft",),
    wanted={"single_exact_match": 0.95, "megatron_equal_answers": 1.0},
)
