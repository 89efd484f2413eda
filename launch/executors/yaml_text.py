"""YAML that a person can read: text of several lines stays so."""

from __future__ import annotations

from typing import Any

import yaml


class _Dumper(yaml.SafeDumper):
    pass


def _represent(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    style = "|" if "\n" in text else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _represent)


def yaml_text(value: Any) -> str:
    """Return a value of plain types as YAML, its keys sorted."""
    return yaml.dump(value, Dumper=_Dumper, width=1000)
