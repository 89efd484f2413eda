"""A recipe on its way to a site's scheduler."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import nemo_run as run

from launch.code_version import CodeVersion
from launch.site import Site


@dataclass(frozen=True)
class JobRequest:
    """What a scheduler's module makes an executor of.

    Attributes:
        recipe: a call that trains; its paths are those that its ranks see.
        site: of the scheduler.
        code: to ship.
        folder: for what is sent; gone after the submission.
    """

    recipe: run.Partial
    site: Site
    code: CodeVersion
    folder: Path

    @property
    def name(self) -> str:
        """The run's name."""
        return self.recipe.log.name

    @property
    def num_nodes(self) -> int:
        """Machines."""
        return self.recipe.trainer.num_nodes

    @property
    def processes_per_node(self) -> int:
        """Ranks on each machine."""
        return self.recipe.trainer.devices

    @property
    def launcher(self) -> str | None:
        """Who starts the ranks where the scheduler starts one process on each machine."""
        return "torchrun" if self.num_nodes * self.processes_per_node > 1 else None
