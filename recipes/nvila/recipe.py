"""NVILA in three stages, as Heron-NVILA-Lite was trained: align, pretrain, sft.

    python -m launch train --factory "nvila(stage='sft', size='15b', num_nodes=12)" \
        data.train_paths=sft.jsonl data.image_folder=images --dryrun

Values, sources and results: recipes/nvila/README.md. Building the recipe touches no network, file,
environment or GPU.
"""

from __future__ import annotations

import nemo_run as run
from nemo.collections import llm

from models.nvila.config import NvilaConfig, NvilaLanguageConfig, SiglipTowerConfig
from models.nvila.model import NvilaModel
from recipes import parts
from recipes.nvila.sizes import LAYOUTS, LORA_LAYOUTS, SIZES, Size, SizeRow
from recipes.nvila.stages import LORA_OPTIONS, Stage, stage_row
from recipes.rows import LayoutRow, StageRow, look_up


def model(size: SizeRow, stage: StageRow, layout: LayoutRow, assets: str) -> run.Config:
    """Build the model of a size, frozen as the stage says."""
    recompute = parts.recompute_options(layout)
    language = run.Config(
        NvilaLanguageConfig,
        hidden_size=size.hidden_size,
        num_layers=size.num_layers,
        num_attention_heads=size.num_attention_heads,
        num_query_groups=size.num_query_groups,
        kv_channels=size.head_size,
        ffn_hidden_size=size.ffn_hidden_size,
        rotary_base=size.rotary_base,
        share_embeddings_and_output_weights=size.tied_embeddings,
        seq_length=stage.seq_length,
        cross_entropy_loss_fusion=layout.precision != "fp32",
        **recompute,
    )
    vision = run.Config(
        SiglipTowerConfig,
        hidden_size=size.vision_hidden_size,
        num_layers=size.vision_num_layers,
        num_attention_heads=size.vision_num_attention_heads,
        ffn_hidden_size=size.vision_ffn_hidden_size,
        image_size=size.image_size,
        **recompute,
    )
    return run.Config(
        NvilaModel,
        config=run.Config(
            NvilaConfig,
            language_transformer_config=language,
            vision_transformer_config=vision,
            mm_projector_type=size.mm_projector_type,
            assets=assets,
            freeze_language_model=not stage.train_language,
            freeze_vision_model=not stage.train_vision,
            freeze_vision_projection=not stage.train_projector,
        ),
    )


@run.cli.factory(target=llm.finetune, name="nvila")
def finetune_recipe(
    dir: str = "runs",
    name: str | None = None,
    num_nodes: int = 1,
    num_gpus_per_node: int | None = None,
    peft_scheme: str | None = None,
    stage: Stage = "sft",
    size: Size = "nano",
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
        peft_scheme: "none", "lora" or "dora" (all linear layers of the language model; vision tower
            and projector train in full where the stage trains them). Not in the stage align.
        stage: align, pretrain, sft or preference.
        size: nano, 1b, 2b, 15b or 33b.
        init_from: checkpoint or run to start from; the default is `dir` + the stage before
            (`dir/assembled` for align).
        precision: fp32, bf16 or fp8; the default is the layout's.
        data: "files" (JSON or JSONL with image folders) or "shards" (tar shards and blends).

    Returns:
        A call of nemo.collections.llm.finetune that any NeMo-Run executor can run.

    Raises:
        ValueError: an unknown value, or a batch that does not divide over the GPUs.
    """
    size_row = look_up(SIZES, "size", size)
    row = stage_row(stage, size, peft_scheme)
    is_adapted = peft_scheme in parts.ADAPTER_SCHEMES
    layout = parts.with_precision((LORA_LAYOUTS if is_adapted else LAYOUTS)[size], precision)
    gpus = (1 if size == "nano" else 8) if num_gpus_per_node is None else num_gpus_per_node
    start = init_from or f"{dir}/{row.starts_from}"
    return parts.finetune(
        model(size_row, row, layout, assets=start),
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


@run.cli.factory(target=llm.finetune, name="nvila_pretrain")
def pretrain_recipe(
    dir: str = "runs",
    name: str | None = None,
    num_nodes: int = 1,
    num_gpus_per_node: int | None = None,
    peft_scheme: str | None = None,
    size: Size = "nano",
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
        init_from=init_from,
        precision=precision,
        data=data,
    )
