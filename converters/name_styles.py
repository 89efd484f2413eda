"""The two styles of names that transformers gives the tensors of image-text models.

On disk a tensor is `language_model.model.layers.0...`, `language_model.lm_head.weight`,
`multi_modal_projector...`: so in the published models, in what servers load, and in what
transformers 4.53 writes, whose `save_pretrained` turns its names back into these. In memory the
same transformers says `model.language_model.layers.0...`, `lm_head.weight`,
`model.multi_modal_projector...`: so in files that were written from a `state_dict`. Tables have the
first style, which is what export writes; import reads either.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeVar

from converters.rows import ConversionError

TensorType = TypeVar("TensorType")


@dataclass(frozen=True)
class NameStyles:
    """The styles of a family.

    Attributes:
        in_memory_to_disk: prefixes.
    """

    in_memory_to_disk: Mapping[str, str]

    def disk_names(self, tensors: Mapping[str, TensorType]) -> dict[str, TensorType]:
        """Return tensors of either style under the names on disk.

        Raises:
            ConversionError: names of both styles.
        """
        renamed = {name: self._disk_name(name) for name in tensors}
        in_memory = sorted(name for name, disk in renamed.items() if name != disk)
        on_disk = sorted(
            name for name in renamed if name.startswith(tuple(self.in_memory_to_disk.values()))
        )
        if in_memory and on_disk:
            raise ConversionError(
                f"The Hugging Face tensors mix two styles of names: {', '.join(in_memory)} beside "
                f"{', '.join(on_disk)}."
            )
        return {renamed[name]: tensor for name, tensor in tensors.items()}

    def module_name(self, name: str) -> str:
        """Return the place in transformers' module tree of a tensor with a name on disk."""
        for in_memory, on_disk in self.in_memory_to_disk.items():
            if name.startswith(on_disk):
                return in_memory + name.removeprefix(on_disk)
        raise AssertionError(name)

    def _disk_name(self, name: str) -> str:
        for in_memory, on_disk in self.in_memory_to_disk.items():
            if name.startswith(in_memory):
                return on_disk + name.removeprefix(in_memory)
        return name
