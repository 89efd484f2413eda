"""MLlama (Llama 3.2 Vision), fine-tuned in full or with LoRA.

    python -m launch train --factory "mllama(size='11b')" \
        data.train_paths=training.jsonl data.image_folder=images --dryrun

Values and their sources: recipes/mllama/README.md. Building the recipe touches no network, file,
environment or GPU.
"""

from __future__ import annotations

import nemo_run as run
from nemo.collections import llm

from models.mllama.config import MllamaConfig, MllamaLanguageConfig, MllamaVisionConfig
from models.mllama.model import MllamaModel
from recipes import parts
from recipes.mllama.sizes import LAYOUTS, LORA_LAYOUTS, SIZES, Size, SizeRow
from recipes.mllama.stages import LORA_OPTIONS, stage_row
from recipes.rows import LayoutRow, StageRow, look_up


def model(size: SizeRow, stage: StageRow, layout: LayoutRow, assets: str) -> run.Config:
    """Build the model of a size."""
    recompute = parts.recompute_options(layout)
    language = run.Config(
        MllamaLanguageConfig,
        hidden_size=size.hidden_size,
        num_layers=size.num_layers,
        cross_attention_layers=size.cross_attention_layers,
        num_attention_heads=size.num_attention_heads,
        num_query_groups=size.num_query_groups,
        ffn_hidden_size=size.ffn_hidden_size,
        rope_scaling=size.rope_scaling,
        seq_length=stage.seq_length,
        cross_entropy_loss_fusion=layout.precision != "fp32",
        **recompute,
    )
    vision = run.Config(
        MllamaVisionConfig,
        hidden_size=size.vision_hidden_size,
        num_layers=size.vision_num_layers,
        num_global_layers=size.vision_num_global_layers,
        num_attention_heads=size.vision_num_attention_heads,
        ffn_hidden_size=size.vision_ffn_hidden_size,
        tapped_layers=size.tapped_layers,
        image_size=size.image_size,
        **recompute,
    )
    return run.Config(
        MllamaModel,
        config=run.Config(
            MllamaConfig,
            language_transformer_config=language,
            vision_transformer_config=vision,
            assets=assets,
            freeze_language_model=not stage.train_language,
            freeze_vision_model=not stage.train_vision,
            freeze_vision_projection=not stage.train_projector,
        ),
    )


@run.cli.factory(target=llm.finetune, name="mllama")
def finetune_recipe(
    dir: str = "runs",
    name: str = "sft",
    num_nodes: int = 1,
    num_gpus_per_node: int | None = None,
    peft_scheme: str | None = "none",
    size: Size = "nano",
    init_from: str | None = None,
    precision: str | None = None,
    data: str = "files",
) -> run.Partial:
    """Compose a fine-tuning.

    With LoRA, `recipe.peft.target_modules`, `recipe.peft.freeze_vision_model` and
    `recipe.peft.freeze_language_model` say what is trained; without, the `freeze_*` fields of
    `recipe.model.config`.

    Args:
        dir: folder of the runs.
        name: of the run.
        num_nodes: machines.
        num_gpus_per_node: processes per machine; the default is 8, and 1 for nano.
        peft_scheme: "none", "lora" or "dora" (all linear layers of the language model, the
            cross-attention included; the vision model is trained).
        size: nano, 11b or 90b.
        init_from: checkpoint or run to start from; the default is `dir/imported`.
        precision: fp32, bf16 or fp8; the default is the layout's.
        data: "files" (JSON or JSONL with image folders) or "shards" (tar shards and blends).

    Returns:
        A call of nemo.collections.llm.finetune that any NeMo-Run executor can run.

    Raises:
        ValueError: an unknown value, or a batch that does not divide over the GPUs.
    """
    size_row = look_up(SIZES, "size", size)
    row = stage_row(peft_scheme, size)
    is_adapted = peft_scheme in parts.ADAPTER_SCHEMES
    layout = parts.with_precision((LORA_LAYOUTS if is_adapted else LAYOUTS)[size], precision)
    start = init_from or f"{dir}/{row.starts_from}"
    return parts.finetune(
        model(size_row, row, layout, assets=start),
        row,
        layout,
        dir=dir,
        name=name,
        num_nodes=num_nodes,
        num_gpus_per_node=(1 if size == "nano" else 8)
        if num_gpus_per_node is None
        else num_gpus_per_node,
        init_from=start,
        data_kind=data,
        peft_scheme=peft_scheme,
        adapter_options=LORA_OPTIONS,
    )
