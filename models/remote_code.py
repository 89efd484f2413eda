"""Whether loading a Hugging Face directory would run only this repository's code.

Standard library only, so that a directory can be judged before anything is loaded from it.
"""

import json
from pathlib import Path

_OUR_CODE = Path(__file__).parent / "hf_code"
_REMEDY = "give --trust-remote-code to run it all the same."


def require_known_code(directory: Path) -> None:
    """Refuses a directory whose code is not a copy of this repository's.

    Whoever loads an exported directory runs the code in it. A byte for byte copy of
    `models/hf_code` is safe to run unasked; anything else is the user's decision.

    Args:
        directory: The Hugging Face directory.

    Raises:
        ValueError: If a code file differs from ours, a JSON file refers to code outside of the
            directory, or a JSON file cannot be read.
    """
    for file in sorted(directory.glob("*.py")):
        original = _OUR_CODE / file.name
        if not original.is_file() or original.read_bytes() != file.read_bytes():
            raise ValueError(f"hf: {file} is not a copy of this repository's code; {_REMEDY}")
    for file in sorted(directory.glob("*.json")):
        if file.name == "adapter_config.json":
            # transformers follows it to a base model, and would run that one's code.
            raise ValueError(f"hf: {file} refers to another model, code included; {_REMEDY}")
        if _refers_elsewhere(file):
            raise ValueError(f"hf: {file} refers to code outside of the directory; {_REMEDY}")


def _refers_elsewhere(file: Path) -> bool:
    """Whether the `auto_map` of a JSON file names "repository--module.Class"."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:  # neither JSON nor UTF-8
        raise ValueError(f"hf: {file} is not JSON ({error}).") from error
    references = content.get("auto_map", {}) if isinstance(content, dict) else {}
    return "--" in json.dumps(references)
