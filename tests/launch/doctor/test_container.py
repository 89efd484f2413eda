"""Images of containers: files, and a registry on loopback that wants a token first."""

import socket

import pytest

from launch.doctor.container import check_container, parse_image
from tests.launch.api_server import ApiServer


@pytest.mark.parametrize(
    ("image", "parts"),
    [
        ("nvcr.io#nvidia/nemo:25.07", ("nvcr.io", "nvidia/nemo", "25.07")),
        ("nvcr.io/nvidia/nemo:25.07", ("nvcr.io", "nvidia/nemo", "25.07")),
        ("docker://localhost:5000/nemo", ("localhost:5000", "nemo", "latest")),
        ("python:3.12", ("registry-1.docker.io", "library/python", "3.12")),
        ("team/nemo@sha256:ab", ("registry-1.docker.io", "team/nemo", "sha256:ab")),
    ],
)
def test_names_of_images(image, parts):
    assert parse_image(image) == parts


def test_a_file(tmp_path):
    path = tmp_path / "nemo.sqsh"
    assert (check_container(str(path)).verdict, "no file" in check_container(str(path)).found) == (
        "bad",
        True,
    )
    path.touch()
    assert check_container(str(path)).verdict == "ok"


@pytest.fixture
def registry():
    with ApiServer(answers := {}) as server:
        challenge = f'Bearer realm="http://{server.address}/token",service="s",scope="pull"'
        asks = (401, None, {"WWW-Authenticate": challenge})
        answers |= {
            r"GET /token\?service=s&scope=pull": (200, {"token": "t"}),
            "HEAD /v2/nvidia/.*/manifests/[^ ]*": asks,
            "HEAD /v2/nvidia/nemo/manifests/25.07 Bearer t": (200, None),
            "HEAD /v2/private/nemo/manifests/1": (401, None),
        }
        yield server.address


@pytest.mark.parametrize(
    ("name", "verdict", "found"),
    [
        ("nvidia/nemo:25.07", "ok", "nvidia/nemo:25.07"),
        ("nvidia/nemo:1.0", "bad", "has no nvidia/nemo:1.0"),
        ("private/nemo:1", "warn", "is not public"),
    ],
)
def test_what_a_registry_says(name, verdict, found, registry):
    finding = check_container(f"{registry}#{name}")
    assert finding.verdict == verdict
    assert found in finding.found


def test_a_registry_that_cannot_be_reached():
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{closed.getsockname()[1]}"
        finding = check_container(f"{address}/nemo:1")
    assert finding.verdict == "warn"
    assert address in finding.found
