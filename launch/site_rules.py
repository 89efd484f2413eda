"""What a site says about the runs themselves, put into a recipe."""

from __future__ import annotations

from typing import TYPE_CHECKING

from launch.site import Site

if TYPE_CHECKING:
    import nemo_run as run


def apply_site(recipe: run.Partial, site: Site) -> None:
    """Set what the site says about bad steps, in place.

    Raises:
        ValueError: a value that is not allowed, or the recipe does not look for bad steps.
    """
    import fiddle as fdl

    from recipes.bad_steps import BadSteps

    said = {} if site.bad_steps is None else site.bad_steps.model_dump(exclude_none=True)
    if not said:
        return
    rules = [one for one in recipe.trainer.callbacks if fdl.get_callable(one) is BadSteps]
    if not rules:
        raise ValueError("bad_steps: the site has rules, but the recipe has no callback BadSteps.")
    for rule in rules:
        for name, value in said.items():
            setattr(rule, name, value)
        BadSteps(**fdl.ordered_arguments(rule))
