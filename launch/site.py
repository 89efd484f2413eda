"""Sites: a cluster described once, in TOML, so that any recipe becomes a job there.

A site says what a job needs and a recipe does not know: the scheduler and its account, the
container, the mounts, the environment. `launch/sites/` has examples to copy.
"""

from __future__ import annotations

import re
import tomllib
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PositiveInt,
    ValidationError,
    model_validator,
)

SITES_FOLDER = Path(__file__).parent / "sites"
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_SECRET = re.compile(r"(^|_)(TOKEN|SECRET|PASSWORD|PASSWD|API_?KEY|ACCESS_KEY|CREDENTIALS?)(_|$)")
_TIME = re.compile(r"(?:(\d+)-)?(\d{1,2}):([0-5]\d):([0-5]\d)")


def _variable_name(name: str) -> str:
    if not _NAME.fullmatch(name):
        raise ValueError(f"{name!r} is no name of an environment variable")
    return name


def _public_name(name: str) -> str:
    if _SECRET.search(_variable_name(name).upper()):
        raise ValueError(
            f"{name} looks like a secret, which a script would show; export it in the shell that "
            "submits and name it in pass_environment"
        )
    return name


def _text(value: Any) -> Any:
    """Turn a number into text; a truth value has no one spelling in an environment."""
    if isinstance(value, bool):
        raise ValueError(f"{str(value).lower()} is no text; write it in quotes as it should arrive")
    return str(value) if isinstance(value, int | float) else value


def _slurm_time(text: str) -> str:
    if not _TIME.fullmatch(text):
        raise ValueError(f"{text!r} is no time; write hours:minutes:seconds or days-hours:...")
    return text


def time_limit(hours: float) -> str:
    """Spell a time as Slurm reads it: days-hours:minutes:seconds.

    Raises:
        ValueError: less than a minute.
    """
    seconds = round(hours * 3600)
    if seconds < 60:
        raise ValueError(f"hours-per-job: {hours:g} is too short; allowed is a minute or more.")
    days, seconds = divmod(seconds, 86_400)
    return f"{days}-{seconds // 3600:02}:{seconds // 60 % 60:02}:{seconds % 60:02}"


def _mount(text: str) -> str:
    if not re.fullmatch(r"[^:,]+(:[^:,]+){1,2}", text):
        raise ValueError(f"{text!r} is no mount; write outside:inside, or outside:inside:ro")
    return text


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Container(_Table):
    """The container of every rank.

    Attributes:
        image: as the site's runtime spells it (enroot: `nvcr.io#nvidia/nemo:25.07`, or a file).
        mounts: `outside:inside` or `outside:inside:ro`.
    """

    image: str
    mounts: tuple[Annotated[str, AfterValidator(_mount)], ...] = ()

    @property
    def folders(self) -> list[tuple[str, str]]:
        """What is mounted: (outside, inside)."""
        return [(mount.split(":")[0], mount.split(":")[1]) for mount in self.mounts]

    def outside(self, path: PurePosixPath) -> PurePosixPath:
        """Return where a path of the container lies outside; the longest mount decides."""
        fitting = [pair for pair in self.folders if path.is_relative_to(pair[1])]
        assert fitting, path
        outside, inside = max(fitting, key=lambda pair: len(pair[1]))
        return PurePosixPath(outside) / path.relative_to(inside)


class Ssh(_Table):
    """A login node from which jobs are submitted, when this machine is not one.

    Attributes:
        host: name or address.
        user: account there.
        job_folder: where code, scripts and logs go; absolute, on a file system that all nodes have.
        port: of its sshd.
        identity: file of a private key; without it the password is asked for.
    """

    host: str
    user: str
    job_folder: Annotated[str, Field(pattern=r"^/")]
    port: PositiveInt = 22
    identity: str | None = None


class Slurm(_Table):
    """What sbatch is told.

    Attributes:
        account: that pays.
        partition: of the nodes.
        qos: quality of service.
        time: limit of one job, `[days-]hours:minutes:seconds`.
        exclude: nodes that get no job.
        constraint: features that the nodes must have.
        gpus_flag: how the cluster wants GPUs to be asked for; "none" where a node is given whole.
        exclusive: no other job on the nodes.
        seconds_to_stop: before its time limit a job is asked to save a checkpoint; it is started
            once more, as often as it takes.
        retries: how many attempts in a row may fail without a new checkpoint, after the first.
        doctor: look at the nodes and the network before each attempt, and leave out nodes that are
            not fit.
        additional: other parameters of sbatch, by name.
        srun_arguments: put behind each srun.
        ssh: the login node, when this machine is not one.
    """

    account: str
    partition: str | None = None
    qos: str | None = None
    time: Annotated[str, AfterValidator(_slurm_time)] = "04:00:00"
    exclude: tuple[str, ...] = ()
    constraint: str | None = None
    gpus_flag: Literal["gpus_per_node", "gres", "none"] = "gpus_per_node"
    exclusive: bool = True
    seconds_to_stop: PositiveInt = 300
    retries: Annotated[int, Field(ge=0)] = 3
    doctor: bool = False
    additional: dict[str, str | int | bool] = {}
    srun_arguments: tuple[str, ...] = ()
    ssh: Ssh | None = None

    @property
    def seconds(self) -> int:
        """The time limit of one job."""
        parts = _TIME.fullmatch(self.time)
        assert parts is not None
        days, hours, minutes, seconds = (int(part or 0) for part in parts.groups())
        return ((days * 24 + hours) * 60 + minutes) * 60 + seconds

    @model_validator(mode="after")
    def _there_is_time_to_train(self) -> Slurm:
        if self.seconds_to_stop >= self.seconds:
            raise ValueError(
                f"seconds_to_stop: {self.seconds_to_stop} is not less than the time of a job, "
                f"{self.time}"
            )
        return self


class BadStepRules(_Table):
    """What is done with a step whose loss is not a number or spikes; see recipes/bad_steps.py.

    Attributes:
        action: "skip", or "roll_back" to the last checkpoint first.
        spike_factor: times the median of the last losses.
        window_steps: how many losses the median is of.
        most_in_a_row: bad steps, before the run is given up.
    """

    action: str | None = None
    spike_factor: float | None = None
    window_steps: int | None = None
    most_in_a_row: int | None = None


class Site(_Table):
    """A place where jobs run.

    Attributes:
        scheduler: local (this machine) or slurm.
        gpus_per_node: of a node; 0 where there are none.
        gpu: their kind, for the memory planner.
        environment: variables of every rank; they arrive as they are written.
        pass_environment: variables of the submitting shell, by name: secrets belong here.
        setup: lines of the job's script before its ranks start.
        scratch: fast local folder of each node.
        container: where ranks run in one.
        slurm: with scheduler "slurm".
        bad_steps: instead of the recipe's rules.
    """

    scheduler: Literal["local", "slurm"]
    gpus_per_node: Annotated[int, Field(ge=0)] = 0
    gpu: str | None = None
    environment: dict[
        Annotated[str, AfterValidator(_public_name)], Annotated[str, BeforeValidator(_text)]
    ] = {}
    pass_environment: tuple[Annotated[str, AfterValidator(_variable_name)], ...] = ()
    setup: tuple[str, ...] = ()
    scratch: str | None = None
    container: Container | None = None
    slurm: Slurm | None = None
    bad_steps: BadStepRules | None = None

    @property
    def is_remote(self) -> bool:
        """Whether its jobs are submitted from another machine, whose files are not here."""
        return self.slurm is not None and self.slurm.ssh is not None

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
        if self.scheduler == "slurm" and self.slurm is None:
            raise ValueError("scheduler slurm needs a table [slurm] with an account")
        if self.scheduler == "local":
            for name in ("slurm", "container", "setup"):
                if getattr(self, name):
                    raise ValueError(f"{name} does not go with scheduler local")
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
