"""From `"nvila(stage='sft', size='2b')"` and `key=value` to a recipe."""

from __future__ import annotations

import ast
import importlib
import inspect
import sys
import types
import typing
from collections.abc import Sequence
from typing import Any

import fiddle as fdl
import nemo_run as run
from fiddle import daglish
from nemo_run.cli.cli_parser import CLIException, parse_cli_args, type_parser

FACTORIES = {
    "nvila": "recipes.nvila.recipe:finetune_recipe",
    "nvila_pretrain": "recipes.nvila.recipe:pretrain_recipe",
    "llava": "recipes.llava.recipe:finetune_recipe",
    "llava_pretrain": "recipes.llava.recipe:pretrain_recipe",
    "llava_jp": "recipes.llava_jp.recipe:finetune_recipe",
    "llava_jp_pretrain": "recipes.llava_jp.recipe:pretrain_recipe",
    "mllama": "recipes.mllama.recipe:finetune_recipe",
}
"""Where each factory's function is; only the one that is asked for is imported."""


@type_parser.register_parser(types.UnionType)
def parse_union(value: str, annotation: Any) -> Any:
    """Read a value of a type like `str | list[str] | None`, which NeMo-Run's parser does not know.

    Text comes last: everything is text, and `['a', 'b']` is meant to be a list.
    """
    members = typing.get_args(annotation)
    if value in ("None", "null") and types.NoneType in members:
        return None
    errors = []
    for member in sorted((m for m in members if m is not types.NoneType), key=lambda m: m is str):
        try:
            return type_parser.parse(value, member)
        except (CLIException, ValueError, TypeError) as error:
            errors.append(str(error))
    raise ValueError("; ".join(errors))


def _learn_annotations(recipe: run.Partial) -> None:
    """Teach NeMo-Run's parser the annotations in a recipe that are text.

    Modules that postpone the evaluation of annotations have `'bool'` where it looks for `bool`.
    """
    for value, _ in daglish.iterate(recipe):
        if not isinstance(value, fdl.Buildable):
            continue
        target = value.__fn_or_cls__
        for owner in getattr(target, "__mro__", (target,)):
            own = dict(inspect.get_annotations(owner))
            if "__init__" in vars(owner):
                own |= inspect.get_annotations(owner.__init__)
            for annotation in own.values():
                if isinstance(annotation, str):
                    _learn(annotation, vars(sys.modules[owner.__module__]))


def _learn(annotation: str, names: dict[str, Any]) -> None:
    try:
        meant = eval(annotation, names)  # what Python itself does with it
    except NameError:  # imported for type checkers only: no value of the command line
        return

    def parse(value: str, _: Any) -> Any:
        return type_parser.parse(value, meant)

    type_parser.custom_parsers[annotation] = parse


def parse_factory(text: str) -> tuple[str, dict[str, Any]]:
    """Split a factory into its name and its arguments, which are literals.

    Raises:
        ValueError: the text is not of the form name(key=literal, ...).
    """
    problem = (
        f"factory: {text!r} cannot be read; write e.g. \"nvila(stage='sft', size='2b')\" "
        "with text in quotes."
    )
    try:
        node = ast.parse(text.strip(), mode="eval").body
    except SyntaxError as error:
        raise ValueError(problem) from error
    if isinstance(node, ast.Name):
        return node.id, {}
    if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Name)) or node.args:
        raise ValueError(problem)
    try:
        return node.func.id, {
            str(keyword.arg): ast.literal_eval(keyword.value) for keyword in node.keywords
        }
    except ValueError as error:
        raise ValueError(problem) from error


def build_stages(text: str, stages: str, overrides: Sequence[str] = ()) -> list[run.Partial]:
    """Build a recipe for each stage.

    Args:
        text: a factory without the argument `stage`.
        stages: names, separated by commas.
        overrides: of all stages; `STAGE.key=value` is of one.

    Raises:
        ValueError: as `build_recipe`, or the factory names a stage or a run itself.
    """
    name, arguments = parse_factory(text)
    for taken in ("stage", "name"):
        if taken in arguments:
            raise ValueError(f"factory: {taken} does not go with stages={stages!r}; leave it out.")
    names = [stage.strip() for stage in stages.split(",")]
    if len(set(names)) < len(names) or "" in names:
        raise ValueError(f"stages: {stages!r} must be different names, separated by commas.")
    common = [one for one in overrides if one.partition(".")[0] not in names]
    return [
        _build(
            name,
            arguments | {"stage": stage},
            [*common, *(one[len(stage) + 1 :] for one in overrides if one.startswith(f"{stage}."))],
        )
        for stage in names
    ]


def build_recipe(text: str, overrides: Sequence[str] = ()) -> run.Partial:
    """Build a recipe and override its fields in NeMo-Run's dotted syntax.

    Raises:
        ValueError: an unknown factory, argument or field, or a value that does not fit.
    """
    return _build(*parse_factory(text), overrides)


def _build(name: str, arguments: dict[str, Any], overrides: Sequence[str]) -> run.Partial:
    if name not in FACTORIES:
        raise ValueError(f"factory: {name!r} is unknown; allowed are {', '.join(FACTORIES)}.")
    module, _, function = FACTORIES[name].partition(":")
    build = getattr(importlib.import_module(module), function)
    try:
        recipe = build(**arguments)
    except TypeError as error:
        raise ValueError(f"factory: {name} does not accept these arguments ({error}).") from error
    if not overrides:
        return recipe
    _learn_annotations(recipe)
    try:
        return parse_cli_args(recipe, list(overrides), recipe)
    except (CLIException, AttributeError, TypeError) as error:
        first_line = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"{' '.join(overrides)}: cannot be applied ({first_line}).") from error
