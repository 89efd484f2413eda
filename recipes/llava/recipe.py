"""LLaVA in two stages, as LLaVA-1.5 was trained: pretrain (the projector), sft (full or LoRA).

    python -m launch train --factory "llava(stage='sft', size='7b', init_from='runs/imported')" \
        data.train_paths=training.jsonl data.image_folder=images --dryrun

Values, sources and results: recipes/llava/README.md. Building the recipe touches no network, file,
environment or GPU.
"""

from __future__ import annotations

import nemo_run as run
from nemo.collections import llm

from recipes import parts
from recipes.llava.model import model
from recipes.llava.sizes import LAYOUTS, LORA_LAYOUTS, SIZES, Size, is_nano
from recipes.llava.stages import LORA_OPTIONS, Stage, stage_row
from recipes.llava.towers import NANO_TOWERS, PROJECTORS, TOWERS, Projector, Vision
from recipes.rows import look_up


@run.cli.factory(target=llm.finetune, name="llava")
def finetune_recipe(
    dir: str = "runs",
    name: str | None = None,
    num_nodes: int = 1,
    num_gpus_per_node: int | None = None,
    peft_scheme: str | None = "none",
    stage: Stage = "sft",
    size: Size = "nano",
    vision: Vision = "clip",
    projector: Projector = "mlp2x_gelu",
    init_from: str | None = None,
    precision: str | None = None,
    data: str = "files",
) -> run.Partial:
    """Compose one stage.

    Args:
        dir: folder of the runs.
        name: of the run; the default is the stage's name, so that the next stage finds it.
        num_nodes: machines.
        num_gpus_per_node: processes per machine; the default is 8, and 1 for nano.
        peft_scheme: "none", "lora" or "dora" (all linear layers of the language model, and the
            projector in full; the vision tower stays as it is). Not in the stage pretrain.
        stage: pretrain, sft or preference.
        size: the language model. 7b and 13b are LLaVA-1.5's (Vicuna); llama3_8b, llama3_1_8b,
            mistral_7b, qwen2_5_7b, nemotron_4b; nano (a Llama), nano_qwen2, nano_nemotron and
            nano_gpt2 are for a CPU.
        vision: clip (ViT-L/14 at 336 px), clip_hf (the same, computed by transformers), siglip
            (so400m/14 at 384 px), siglip_s2 (the same at two scales of images of 768 px) or
            internvit (300M at 448 px); of nano sizes, small ones of the same kind.
        projector: mlp2x_gelu as LLaVA has it, affine, mlp_downsample_2x2_fix or
            mlp_downsample_3x3_fix.
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
    tower = look_up(NANO_TOWERS if is_nano(size) else TOWERS, "vision", vision)
    look_up(dict.fromkeys(PROJECTORS), "projector", projector)
    row = stage_row(stage, peft_scheme, size)
    is_adapted = peft_scheme in parts.ADAPTER_SCHEMES
    layout = parts.with_precision((LORA_LAYOUTS if is_adapted else LAYOUTS)[size], precision)
    gpus = (1 if is_nano(size) else 8) if num_gpus_per_node is None else num_gpus_per_node
    start = init_from or f"{dir}/{row.starts_from}"
    return parts.finetune(
        model(language, tower, row, layout, assets=start, projector=projector),
        row,
        layout,
        dir=dir,
        name=name or stage,
        num_nodes=num_nodes,
        num_gpus_per_node=gpus,
        init_from=start,
        data_kind=data,
        peft_scheme=peft_scheme,
        adapter_options=LORA_OPTIONS,
    )


@run.cli.factory(target=llm.finetune, name="llava_pretrain")
def pretrain_recipe(
    dir: str = "runs",
    name: str | None = None,
    num_nodes: int = 1,
    num_gpus_per_node: int | None = None,
    peft_scheme: str | None = None,
    size: Size = "nano",
    vision: Vision = "clip",
    projector: Projector = "mlp2x_gelu",
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
        projector=projector,
        init_from=init_from,
        precision=precision,
        data=data,
    )
