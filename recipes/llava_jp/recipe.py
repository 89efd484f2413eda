"""LLaVA-JP in two stages, as it was trained: pretrain (the projector), sft (in full or with LoRA).

    python -m launch train --factory "llava_jp(stage='sft', size='1b', num_gpus_per_node=1)" \
        data.train_paths=training.jsonl data.image_folder=images --dryrun

Values, sources and results: recipes/llava_jp/README.md. Building the recipe touches no network,
file, environment or GPU.
"""

from __future__ import annotations

import nemo_run as run
from nemo.collections import llm

from recipes import parts
from recipes.llava.model import model
from recipes.llava_jp.sizes import LAYOUTS, SIZES, Size, Vision, towers
from recipes.llava_jp.stages import LORA_OPTIONS, Stage, stage_row
from recipes.rows import look_up


@run.cli.factory(target=llm.finetune, name="llava_jp")
def finetune_recipe(
    dir: str = "runs",
    name: str | None = None,
    num_nodes: int = 1,
    num_gpus_per_node: int = 1,
    peft_scheme: str | None = "none",
    stage: Stage = "sft",
    size: Size = "nano",
    vision: Vision = "siglip",
    init_from: str | None = None,
    precision: str | None = None,
    data: str = "files",
) -> run.Partial:
    """Compose one stage.

    Args:
        dir: folder of the runs.
        name: of the run; the default is the stage's name, so that the next stage finds it.
        num_nodes: machines.
        num_gpus_per_node: processes per machine; the published runs had one GPU.
        peft_scheme: "none", "lora" or "dora" (query, key and value of the language model, and the
            projector in full). Not in the stage pretrain.
        stage: pretrain, sft or preference.
        size: nano or 1b.
        vision: clip, clip_hf, siglip or siglip_s2 (two scales, as v1.1), as for llava.
        init_from: checkpoint or run to start from; the default is `dir` + the stage before
            (`dir/assembled` for pretrain).
        precision: fp32, bf16 or fp8; the default is the layout's.
        data: "files" (JSON or JSONL with image folders) or "shards" (tar shards and blends).

    Returns:
        A call of nemo.collections.llm.finetune that any NeMo-Run executor can run.

    Raises:
        ValueError: an unknown value, or a batch that does not divide over the GPUs.
    """
    language = look_up(SIZES, "size", size)
    tower = look_up(towers(size), "vision", vision)
    row = stage_row(stage, peft_scheme, size)
    layout = parts.with_precision(LAYOUTS[size], precision)
    start = init_from or f"{dir}/{row.starts_from}"
    return parts.finetune(
        model(language, tower, row, layout, assets=start),
        row,
        layout,
        dir=dir,
        name=name or stage,
        num_nodes=num_nodes,
        num_gpus_per_node=num_gpus_per_node,
        init_from=start,
        data_kind=data,
        peft_scheme=peft_scheme,
        adapter_options=LORA_OPTIONS,
    )


@run.cli.factory(target=llm.finetune, name="llava_jp_pretrain")
def pretrain_recipe(
    dir: str = "runs",
    name: str | None = None,
    num_nodes: int = 1,
    num_gpus_per_node: int = 1,
    peft_scheme: str | None = None,
    size: Size = "nano",
    vision: Vision = "siglip",
    init_from: str | None = None,
    precision: str | None = None,
    data: str = "files",
) -> run.Partial:
    """Compose the stage `pretrain`; the arguments are those of `finetune_recipe`."""
    return finetune_recipe(
        dir=dir,
        name=name,
        num_nodes=num_nodes,
        num_gpus_per_node=num_gpus_per_node,
        peft_scheme=peft_scheme,
        stage="pretrain",
        size=size,
        vision=vision,
        init_from=init_from,
        precision=precision,
        data=data,
    )
