"""The LLaVA-1.5 recipe: two stages, three sizes, in full or with LoRA."""

from recipes.llava.recipe import finetune_recipe, pretrain_recipe

__all__ = ["finetune_recipe", "pretrain_recipe"]
