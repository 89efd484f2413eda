"""The NVILA recipe: three stages, five sizes."""

from recipes.nvila.recipe import finetune_recipe, pretrain_recipe

__all__ = ["finetune_recipe", "pretrain_recipe"]
