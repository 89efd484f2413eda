"""The MLlama recipe: Llama 3.2 Vision, three sizes, in full or with LoRA."""

from recipes.mllama.recipe import finetune_recipe

__all__ = ["finetune_recipe"]
