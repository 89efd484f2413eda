"""Sites in TOML: what is read, and what is refused with which sentence."""

import getpass
from pathlib import PurePosixPath

import pytest

from launch.site import Container, read_site, shipped_sites

SLURM = """
scheduler = "slurm"
gpus_per_node = 8
[slurm]
account = "vision"
"""
DOCKER = 'scheduler = "docker"\n[container]\nimage = "x"\n'
SKYPILOT = 'scheduler = "skypilot"\n[skypilot]\ninfra = "k8s"\n'
STORAGE = 'storage = { "/data" = "s3://b" }\n'
MOUNTED = '[container]\nimage = "x"\nmounts = ["/a:/b"]\n'
DGX_CLOUD = """
scheduler = "dgx_cloud"
[dgx_cloud]
url = "https://x"
kubernetes_url = "https://x"
project = "p"
client_id = "c"
claims = { "/workspace" = "storage" }
job_folder = "/jobs"
"""


@pytest.fixture
def write_site(tmp_path):
    def write(text):
        path = tmp_path / "mine.toml"
        path.write_text(text, encoding="utf-8")
        return str(path)

    return write


def test_the_shipped_sites_are_right_and_cover_what_the_readme_says():
    sites = {name: read_site(name) for name in shipped_sites()}
    assert set(sites) == {
        "aws_p5", "dgx_cloud", "docker", "h100_node", "kubeflow", "local", "pyxis", "skypilot",
        "slurm",
    }  # fmt: skip
    assert sites["local"].scheduler == sites["h100_node"].scheduler == "local"
    assert sites["pyxis"].container is not None
    assert sites["slurm"].container is None
    aws = sites["aws_p5"]
    assert (aws.environment["FI_PROVIDER"], aws.gpus_per_node) == ("efa", 8)
    for site in sites.values():
        assert "HF_TOKEN" not in site.environment


def test_values_arrive_as_text_and_names_keep_their_case(write_site):
    site = read_site(
        write_site(SLURM + '[environment]\nhttp_proxy = "http://a b"\nN = 3\nX = 0.5\n')
    )
    assert site.environment == {"http_proxy": "http://a b", "N": "3", "X": "0.5"}
    assert site.slurm.time == "04:00:00"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('scheduler = "pbs"', "scheduler: Input should be 'local', 'docker', 'slurm', "),
        ('scheduler = "slurm"', r"scheduler slurm needs a table \[slurm\]"),
        ('scheduler = "slurm"\n[slurm]\npartition = "a"', "slurm.account is missing"),
        (SLURM + 'acount = "x"', "slurm.acount is not known"),
        (SLURM + 'time = "4h"', "slurm.time: '4h' is no time"),
        (SLURM + '[container]\nimage = "x"\nmounts = ["/data"]', "'/data' is no mount"),
        (SLURM + '[environment]\n"A-B" = "1"', "'A-B' is no name of an environment variable"),
        (SLURM + "[environment]\nA = true", "environment.A: true is no text"),
        (SLURM + '[environment]\nHF_TOKEN = "hf_x"', "HF_TOKEN looks like a secret"),
        (SLURM + '[environment]\nwandb_api_key = "x"', "wandb_api_key looks like a secret"),
        (SLURM + '[environment]\nAWS_SECRET_ACCESS_KEY = "x"', "looks like a secret"),
        ('scheduler = "local"\nsetup = ["module load x"]', "setup does not go with scheduler loc"),
        (DOCKER + '[slurm]\naccount = "x"', "slurm does not go with scheduler docker"),
        ('scheduler = "docker"', r"scheduler docker needs a table \[container\]"),
        (
            'pass_environment = ["HF_TOKEN"]\n' + DOCKER,
            "pass_environment does not go with scheduler docker; NeMo-Run would write the values",
        ),
        (SKYPILOT + STORAGE, "scheduler skypilot needs gpus_per_node"),
        ("gpus_per_node = 8\n" + SKYPILOT + STORAGE, "scheduler skypilot needs gpu, the kind of"),
        (
            'gpus_per_node = 8\ngpu = "h100"\n' + SKYPILOT + 'storage = { data = "s3://b" }',
            "skypilot.storage.data: String should match pattern",
        ),
        (
            'gpus_per_node = 8\ngpu = "h100"\n' + SKYPILOT + STORAGE + MOUNTED,
            "container.mounts does not go with scheduler skypilot",
        ),
        ('scratch = "/fast"\n' + DOCKER, "scratch: /fast is not in the container; add it"),
        (
            'gpus_per_node = 8\nscheduler = "kubeflow"\n[container]\nimage = "x"\n'
            '[kubeflow]\nclaim = "a"\npod = { volumes = [] }',
            "kubeflow: pod: volumes would replace what a job needs",
        ),
        (DGX_CLOUD, "dgx_cloud: job_folder: /jobs is in none of the claims' folders"),
        ('scheduler = "local"\ngpus_per_node = -1', "gpus_per_node: Input should be greater"),
        ("scheduler = ", "mine.toml is no TOML"),
        (SLURM + '[slurm.ssh]\nhost = "h"\nuser = "u"\njob_folder = "jobs"', "slurm.ssh.job_fold"),
    ],
)
def test_what_is_wrong_is_named(text, message, write_site):
    with pytest.raises(ValueError, match=message) as caught:
        read_site(write_site(text))
    assert str(caught.value).startswith("site: ")
    assert "\n" not in str(caught.value)
    assert "hf_x" not in str(caught.value)


def test_a_name_that_only_holds_the_word_is_no_secret(write_site):
    variables = {"TOKENIZERS_PARALLELISM": "false", "HF_TOKEN_PATH": "/data/token"}
    lines = "\n".join(f'{name} = "{value}"' for name, value in variables.items())
    assert read_site(write_site(f"{SLURM}[environment]\n{lines}")).environment == variables


def test_an_unknown_name_and_a_missing_file(tmp_path):
    with pytest.raises(ValueError, match="site: 'abci' is unknown; allowed are aws_p5, dgx_cloud"):
        read_site("abci")
    with pytest.raises(ValueError, match="none.toml cannot be read"):
        read_site(str(tmp_path / "none.toml"))
    with pytest.raises(ValueError, match="'../sites/local' is unknown"):
        read_site("../sites/local")


def test_the_time_limit_of_one_job(write_site):
    site = read_site(write_site(SLURM + 'time = "1-02:03:04"\n'))
    assert site.slurm.seconds == 93_784
    shorter = site.with_hours_per_job(25.5)
    assert (shorter.slurm.time, shorter.slurm.seconds) == ("1-01:30:00", 91_800)
    assert shorter.slurm.account == "vision"
    assert site.slurm.time == "1-02:03:04"
    for hours, message in (
        (0.001, "hours-per-job: 0.001 is too short; allowed is a minute or more"),
        (0.05, "hours-per-job: seconds_to_stop: 300 is not less than .* 0-00:03:00"),
    ):
        with pytest.raises(ValueError, match=message):
            site.with_hours_per_job(hours)
    with pytest.raises(ValueError, match="hours-per-job: .* have no limit"):
        read_site("local").with_hours_per_job(2)
    with pytest.raises(ValueError, match="mine.toml: slurm: seconds_to_stop: 300 is not less"):
        read_site(write_site(SLURM + 'time = "00:05:00"\n'))


def test_where_a_path_of_the_container_lies_outside():
    container = Container(image="x", mounts=("/fsx/me:/data", "/local:/data/fast:ro"))
    for inside, outside in (
        ("/data", "/fsx/me"),
        ("/data/runs/sft", "/fsx/me/runs/sft"),
        ("/data/fast/a", "/local/a"),
    ):
        assert str(container.outside(PurePosixPath(inside))) == outside


def test_scratch_is_for_temporary_files_and_caches_unless_the_site_says_otherwise(write_site):
    text = 'scratch = "/fast"\n' + SLURM + '[environment]\nTRITON_CACHE_DIR = "/else"\n'
    variables = read_site(write_site(text)).rank_environment
    assert (variables["TMPDIR"], variables["TRITON_CACHE_DIR"]) == ("/fast", "/else")
    assert variables["TORCHINDUCTOR_CACHE_DIR"] == f"/fast/cache_{getpass.getuser()}/inductor"
    assert read_site(write_site(SLURM)).rank_environment == {}
    with pytest.raises(ValueError, match="scratch: String should match pattern"):
        read_site(write_site('scratch = "fast"\n' + SLURM))
