"""The tables of a site's file, and what their values must be."""

from __future__ import annotations

import re
from pathlib import PurePosixPath
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PositiveInt,
    model_validator,
)

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_SECRET = re.compile(
    r"(^|_)(TOKEN|SECRET|PASSWORD|PASSWD|API_?KEY|ACCESS_KEY|CREDENTIALS?)(_|$)(?!PATH$|FILE$)"
)
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


VariableName = Annotated[str, AfterValidator(_variable_name)]
PublicName = Annotated[str, AfterValidator(_public_name)]
"""Of a variable whose value may be seen."""

Text = Annotated[str, BeforeValidator(_text)]
Folder = Annotated[str, Field(pattern=r"^/")]
"""An absolute path."""


class Table(BaseModel):
    """What is written in a site's file, and nothing else."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Container(Table):
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


class Ssh(Table):
    """A login node from which jobs are submitted, when this machine is not one.

    A job gets the environment of a shell there: secrets of `pass_environment` must be in that one.

    Attributes:
        host: name or address.
        user: account there.
        job_folder: where code, scripts and logs go; absolute, on a file system that all nodes have.
        port: of its sshd.
        identity: file of a private key; without it the password is asked for.
    """

    host: str
    user: str
    job_folder: Folder
    port: PositiveInt = 22
    identity: str | None = None


class Slurm(Table):
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


class Docker(Table):
    """How Docker starts the container on this machine.

    Attributes:
        shm_size: of its shared memory, which the readers of data pass batches through.
        ulimits: `name:soft` or `name:soft:hard`.
        network: that it is in.
    """

    shm_size: str = "64g"
    ulimits: tuple[Annotated[str, Field(pattern=r"^\w+:-?\d+(:-?\d+)?$")], ...] = (
        "memlock:-1",
        "stack:67108864",
    )
    network: str = "host"


class SkyPilot(Table):
    """What SkyPilot is asked for.

    Attributes:
        infra: a cloud, a region of it, or a Kubernetes cluster: `aws/us-east-1`, `k8s/context`.
        storage: buckets by the folder in which ranks see them.
        managed: as a managed job, which is started once more when its machines are taken away.
        use_spot: cheaper machines, which may be taken away.
        network_tier: "best" has the fast network between machines.
        disk_size: of each machine, in GB.
        idle_minutes: until the machines of a job that is not managed are given back.
    """

    infra: str
    storage: dict[Folder, Annotated[str, Field(pattern=r"^\w+://")]]
    managed: bool = True
    use_spot: bool = False
    network_tier: Literal["standard", "best"] | None = None
    disk_size: PositiveInt | None = None
    idle_minutes: PositiveInt = 10


class Kubeflow(Table):
    """A Kubernetes cluster with Kubeflow's training operator (TrainJob, version 2).

    Attributes:
        claim: PersistentVolumeClaim that has data, runs and the jobs' code.
        folder: where ranks see it.
        namespace: of the jobs.
        runtime: ClusterTrainingRuntime.
        secrets: variables of the ranks, from the cluster's secrets: `secret/key`.
        image_pull_secrets: for the container's image.
        pod: other fields of the pods' specification.
    """

    claim: str
    folder: Folder = "/workspace"
    namespace: str = "default"
    runtime: str = "torch-distributed"
    secrets: dict[VariableName, Annotated[str, Field(pattern=r"^[^/]+/[^/]+$")]] = {}
    image_pull_secrets: tuple[str, ...] = ()
    pod: dict[str, Any] = {}

    @model_validator(mode="after")
    def _the_pod_keeps_what_is_ours(self) -> Kubeflow:
        taken = {"containers", "volumes"} & self.pod.keys()
        if taken:
            raise ValueError(f"pod: {' and '.join(sorted(taken))} would replace what a job needs")
        return self


class DgxCloud(Table):
    """DGX Cloud or another Run:ai cluster, submitted to from a machine that has its storage.

    Attributes:
        url: of its API, `https://.../api/v1`.
        kubernetes_url: of its Kubernetes API server.
        project: that the jobs belong to.
        client_id: of the application that may submit.
        secret_variable: variable of the submitting shell that has the application's secret.
        claims: PersistentVolumeClaims by the folder in which ranks see them.
        job_folder: where ranks see what is NEMORUN_HOME on this machine; in one of the claims.
    """

    url: Annotated[str, Field(pattern=r"^https?://")]
    kubernetes_url: Annotated[str, Field(pattern=r"^https?://")]
    project: str
    client_id: str
    secret_variable: VariableName = "RUNAI_CLIENT_SECRET"
    claims: dict[Folder, str]
    job_folder: Folder

    @model_validator(mode="after")
    def _jobs_are_in_a_claim(self) -> DgxCloud:
        folder = PurePosixPath(self.job_folder)
        if not any(folder.is_relative_to(claim) for claim in self.claims):
            raise ValueError(f"job_folder: {folder} is in none of the claims' folders")
        return self


class Stragglers(Table):
    """GPUs that are slower than the others, as NVIDIA's resiliency extension finds them.

    Attributes:
        report_minutes: between two looks, whose scores are in the log and in TensorBoard.
        threshold: of a score, 1 being the fastest GPU, or this GPU's own best.
        stop: end the attempt when one is found.
    """

    report_minutes: Annotated[float, Field(gt=0)] = 5.0
    threshold: Annotated[float, Field(gt=0, lt=1)] = 0.7
    stop: bool = False


class Wandb(Table):
    """Weights & Biases, beside TensorBoard. A run that is started once more goes on there.

    Attributes:
        project: of the runs.
        entity: user or team.
    """

    project: str
    entity: str | None = None


class Mlflow(Table):
    """MLflow, beside TensorBoard. Each start of a run is a run there, tagged with its folder.

    Attributes:
        tracking_uri: of the server, or `file:/folder`.
        experiment: of the runs.
    """

    tracking_uri: str
    experiment: str


class BadStepRules(Table):
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
