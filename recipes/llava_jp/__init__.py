"""The LLaVA-JP recipe: llm-jp-1.3b behind CLIP or SigLIP, in two stages on one GPU."""

from recipes.llava_jp.recipe import finetune_recipe, pretrain_recipe

__all__ = ["finetune_recipe", "pretrain_recipe"]
