"""Sites: a cluster described once, in TOML, so that any recipe becomes a job there.

A site says what a job needs and a recipe does not know: the scheduler and its account, the
container, the mounts, the environment. `launch/sites/` has examples to copy.
"""

from __future__ import annotations

import getpass
import tomllib
from pathlib import Path, PurePosixPath
from typing import Annotated, Literal

from pydantic import Field, ValidationError, model_validator

from launch.site_tables import (
    BadStepRules,
    Container,
    DgxCloud,
    Docker,
    Folder,
    Kubeflow,
    Mlflow,
    PublicName,
    SkyPilot,
    Slurm,
    Stragglers,
    Table,
    Text,
    VariableName,
    Wandb,
    time_limit,
)

SITES_FOLDER = Path(__file__).parent / "sites"

_ALLOWED: dict[str, set[str]] = {
    "local": {"pass_environment"},
    "docker": {"container", "docker"},
    "slurm": {"container", "slurm", "setup", "pass_environment"},
    "skypilot": {"container", "skypilot", "setup"},
    "kubeflow": {"container", "kubeflow"},
    "dgx_cloud": {"container", "dgx_cloud"},
}
"""Tables and keys that go with a scheduler, beside those that all know."""

_NEEDED = {
    "local": (),
    "docker": ("container",),
    "slurm": ("slurm",),
    "skypilot": ("skypilot",),
    "kubeflow": ("container", "kubeflow"),
    "dgx_cloud": ("container", "dgx_cloud"),
}
_HINTS = {
    "pass_environment": "; NeMo-Run would write the values down: mount a file and name it in "
    "HF_TOKEN_PATH or the like",
}


class Site(Table):
    """A place where jobs run.

    Attributes:
        scheduler: local (this machine), docker (a container on it), slurm, skypilot, kubeflow or
            dgx_cloud.
        gpus_per_node: of a node; 0 where there are none.
        gpu: their kind, for the memory planner and for SkyPilot.
        environment: variables of every rank; they arrive as they are written.
        pass_environment: variables of the submitting shell, by name: secrets belong here.
        setup: lines of the job's script before its ranks start.
        scratch: fast local folder that each node has, for temporary files and compilers' caches:
            in a shared home the caches of many ranks get into each other's way.
        container: where ranks run in one.
        docker, slurm, skypilot, kubeflow, dgx_cloud: what that scheduler needs to know.
        bad_steps: instead of the recipe's rules.
        stragglers: look for slow GPUs.
        wandb, mlflow: where curves go, beside TensorBoard.
    """

    scheduler: Literal["local", "docker", "slurm", "skypilot", "kubeflow", "dgx_cloud"]
    gpus_per_node: Annotated[int, Field(ge=0)] = 0
    gpu: str | None = None
    environment: dict[PublicName, Text] = {}
    pass_environment: tuple[VariableName, ...] = ()
    setup: tuple[str, ...] = ()
    scratch: Folder | None = None
    container: Container | None = None
    docker: Docker = Docker()
    slurm: Slurm | None = None
    skypilot: SkyPilot | None = None
    kubeflow: Kubeflow | None = None
    dgx_cloud: DgxCloud | None = None
    bad_steps: BadStepRules | None = None
    stragglers: Stragglers | None = None
    wandb: Wandb | None = None
    mlflow: Mlflow | None = None

    @property
    def rank_environment(self) -> dict[str, str]:
        """The variables of every rank: those of the file, and what scratch is for."""
        if self.scratch is None:
            return dict(self.environment)
        caches = f"{self.scratch}/cache_{getpass.getuser()}"
        return {
            "TMPDIR": self.scratch,
            "TRITON_CACHE_DIR": f"{caches}/triton",
            "TORCHINDUCTOR_CACHE_DIR": f"{caches}/inductor",
            "HF_MODULES_CACHE": f"{caches}/hf_modules",
        } | self.environment

    @property
    def is_remote(self) -> bool:
        """Whether its jobs run where this machine's folders have other names, or none."""
        over_ssh = self.slurm is not None and self.slurm.ssh is not None
        return over_ssh or self.scheduler in ("skypilot", "kubeflow", "dgx_cloud")

    @property
    def sees_our_files(self) -> bool:
        """Whether the ranks' paths mean here what they mean there."""
        folders = [] if self.container is None else self.container.folders
        return not self.is_remote and all(outside == inside for outside, inside in folders)

    @property
    def folders(self) -> list[str] | None:
        """The folders that ranks see; None where they see those of their machine."""
        if self.skypilot is not None:
            return list(self.skypilot.storage)
        if self.kubeflow is not None:
            return [self.kubeflow.folder]
        if self.dgx_cloud is not None:
            return list(self.dgx_cloud.claims)
        return None if self.container is None else [inside for _, inside in self.container.folders]

    def with_hours_per_job(self, hours: float) -> Site:
        """Return this site with another time limit of its jobs.

        Raises:
            ValueError: it has no limit, or this one leaves no time to train.
        """
        if self.slurm is None:
            raise ValueError("hours-per-job: jobs of this site have no limit; name a Slurm site.")
        slurm = self.slurm.model_dump() | {"time": time_limit(hours)}
        try:
            return self.model_copy(update={"slurm": Slurm.model_validate(slurm)})
        except ValidationError as error:
            raise ValueError(f"hours-per-job: {_first_problem(error)}.") from error

    @model_validator(mode="after")
    def _tables_fit_the_scheduler(self) -> Site:
        for name in _NEEDED[self.scheduler]:
            if getattr(self, name) is None:
                raise ValueError(f"scheduler {self.scheduler} needs a table [{name}]")
        for name in sorted(set.union(*_ALLOWED.values()) - _ALLOWED[self.scheduler]):
            if name in self.model_fields_set:
                hint = _HINTS.get(name, "")
                raise ValueError(f"{name} does not go with scheduler {self.scheduler}{hint}")
        return self

    @model_validator(mode="after")
    def _machines_elsewhere_are_described(self) -> Site:
        if self.scheduler not in ("skypilot", "kubeflow", "dgx_cloud"):
            return self
        if self.container is not None and self.container.mounts:
            raise ValueError(
                f"container.mounts does not go with scheduler {self.scheduler}, whose table says "
                "what ranks see"
            )
        if not self.gpus_per_node:
            raise ValueError(f"scheduler {self.scheduler} needs gpus_per_node")
        if self.scheduler == "skypilot" and self.gpu is None:
            raise ValueError("scheduler skypilot needs gpu, the kind of GPU to ask for")
        return self

    @model_validator(mode="after")
    def _what_is_asked_for_is_there(self) -> Site:
        if self.stragglers is not None and not self.gpus_per_node:
            raise ValueError("stragglers needs gpus_per_node: it times what GPUs do")
        if self.scratch is None or self.folders is None:
            return self
        if not any(PurePosixPath(self.scratch).is_relative_to(one) for one in self.folders):
            raise ValueError(
                f"scratch: {self.scratch} is not in the container; add it to its mounts"
            )
        return self


LOCAL = Site(scheduler="local")
"""This machine, as it is."""


def shipped_sites() -> list[str]:
    """Return the names of the sites that come with the project."""
    return sorted(path.stem for path in SITES_FOLDER.glob("*.toml"))


def read_site(name_or_file: str) -> Site:
    """Read a shipped site by its name, or one of the user's from a file.

    Raises:
        ValueError: there is none, or it is not right; the message names the file and the key.
    """
    path = Path(name_or_file)
    if path.suffix != ".toml":
        path = SITES_FOLDER / f"{name_or_file}.toml"
        if name_or_file not in shipped_sites():
            raise ValueError(
                f"site: {name_or_file!r} is unknown; allowed are {', '.join(shipped_sites())}, or "
                "a file that ends in .toml."
            )
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"site: {path} cannot be read ({error.strerror}).") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"site: {path} is no TOML ({error}).") from error
    try:
        return Site.model_validate(content)
    except ValidationError as error:
        raise ValueError(f"site: {path}: {_first_problem(error)}.") from error


def _first_problem(error: ValidationError) -> str:
    problem = error.errors()[0]
    place = ".".join(str(part) for part in problem["loc"] if part != "[key]")
    if problem["type"] == "extra_forbidden":
        return f"{place} is not known"
    if problem["type"] == "missing":
        return f"{place} is missing"
    message = problem["msg"].removeprefix("Value error, ")
    return f"{place}: {message}" if place else message
