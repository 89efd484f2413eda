"""Models by their name on the hub: a server on this machine answers as the hub does."""

import json
import os
import re
import subprocess
import sys
import threading
from dataclasses import dataclass, field
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from converters.hub import DirectorySource, HubSource, open_source

ROOT = Path(__file__).parents[2]
COMMIT = "0123456789abcdef0123456789abcdef01234567"
FETCH = """
import sys
from converters.hub import open_source
source = open_source(sys.argv[1])
try:
    source.small_files()
    source.all_files()
except ValueError as error:
    print(error)
    sys.exit(2)
"""


@dataclass
class Hub:
    """What the server has, wants and was asked."""

    files: dict[str, bytes] = field(default_factory=dict)
    gated_for: str | None = None
    status: int = 200
    asked: list[str] = field(default_factory=list)
    url: str = ""


@pytest.fixture
def hub():
    """A hub with one model, ``org/model``."""
    state = Hub(files={"config.json": b'{"model_type": "mllama"}'})

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self):
            self.answer(with_body=False)

        def do_GET(self):
            self.answer(with_body=True)

        def answer(self, with_body):
            state.asked.append(self.path)
            status, headers, body = respond(state, self.path, self.headers)
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if with_body:
                self.wfile.write(body)

        def log_message(self, *arguments):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    state.url = f"http://127.0.0.1:{server.server_port}"
    yield state
    server.shutdown()
    server.server_close()


def respond(hub, path, headers):
    """Return status, headers and body as the hub does for a gated or an unknown model."""
    token = headers.get("Authorization", "").removeprefix("Bearer ")
    if hub.status != 200:
        return hub.status, {}, b""
    if not path.startswith(("/api/models/org/model/", "/org/model/")):
        return (404 if token else 401), {"X-Error-Code": "RepoNotFound"}, b""
    if match := re.fullmatch(r"/api/models/org/model/revision/(.*)", path):
        if match[1] not in ("main", COMMIT):
            return 404, {"X-Error-Code": "RevisionNotFound"}, b""
        siblings = [{"rfilename": name} for name in hub.files]
        body = {"id": "org/model", "sha": COMMIT, "siblings": siblings}
        return 200, {"Content-Type": "application/json"}, json.dumps(body).encode()
    # The page of a gated model is public; its files are not.
    if hub.gated_for is not None and token != hub.gated_for:
        message = "Access to model org/model is restricted."
        status = 403 if token else 401
        return status, {"X-Error-Code": "GatedRepo", "X-Error-Message": message}, b""
    name = path.removeprefix(f"/org/model/resolve/{COMMIT}/")
    body = hub.files[name]
    return 200, {"ETag": f'"{name}"', "X-Repo-Commit": COMMIT}, body


@pytest.fixture
def fetch(hub, tmp_path):
    """Fetches a model in a process of its own; returns exit status and output."""

    def run(name, **environment):
        inherited = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
        finished = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", FETCH, name],
            cwd=ROOT,
            env=inherited
            | {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "cache")}
            | environment,
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert "Traceback" not in finished.stderr, finished.stderr
        return finished.returncode, finished.stdout.strip()

    return run


def test_a_folder_wins_over_a_name_and_the_scheme_over_both(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "org" / "model").mkdir(parents=True)
    assert open_source("org/model") == DirectorySource(Path("org/model"))
    assert open_source("hf://org/model") == HubSource("org/model", None)
    assert open_source("org/other") == HubSource("org/other", None)
    assert open_source("hf://org/model@v2") == HubSource("org/model", "v2")
    for path in ("./org/other", "/org/other", "a/b/c", "other"):
        assert open_source(path) == DirectorySource(Path(path))
    for name in ("hf://model", "hf://a/b/c", "hf://"):
        with pytest.raises(ValueError, match="names no model; write hf://organisation/name"):
            open_source(name)


def test_the_weights_follow_the_small_files_and_nothing_else_is_fetched(hub, fetch):
    hub.files |= {
        "model-00001-of-00001.safetensors": b"weights",
        "model.safetensors.index.json": b"{}",
        "original/params.json": b"{}",
        "original/consolidated.00.pth": b"other weights",
        "pytorch_model.bin": b"other weights",
        "README.md": b"",
    }
    status, output = fetch("org/model")
    assert (status, output) == (0, "")
    fetched = [path.rsplit("/", 1)[1] for path in hub.asked if "/resolve/" in path]
    assert set(fetched) == {
        "config.json",
        "model.safetensors.index.json",
        "model-00001-of-00001.safetensors",
    }
    assert fetched[-1] == "model-00001-of-00001.safetensors"
    assert not any("/original/" in path for path in hub.asked)


def test_a_gated_model_says_what_to_do(hub, fetch):
    hub.gated_for = "good"
    for environment in ({}, {"HF_TOKEN": "other"}):
        status, output = fetch("org/model", **environment)
        assert status == 2
        assert output == (
            "hf: org/model is gated and this account has no access to it; accept its licence on "
            f"{hub.url}/org/model and set HF_TOKEN or run `huggingface-cli login` with a token of "
            "the account that did."
        )
    assert fetch("org/model", HF_TOKEN="good") == (0, "")


@pytest.mark.parametrize("environment", [{}, {"HF_TOKEN": "good"}])
def test_an_unknown_model(fetch, environment):
    status, output = fetch("org/unknown", **environment)
    assert status == 2
    assert output.startswith("hf: org/unknown is neither a folder nor a model on the hub")
    assert "\n" not in output


def test_an_unknown_revision(fetch):
    status, output = fetch("hf://org/model@v9")
    assert status == 2
    assert output.startswith("hf: org/model has no revision 'v9'; look at ")


def test_a_hub_that_fails(hub, fetch):
    hub.status = 500
    status, output = fetch("org/model")
    assert (status, output) == (2, "hf: the hub answered 500 for org/model; try again later.")


def test_no_connection(fetch):
    status, output = fetch("org/model", HF_ENDPOINT="http://127.0.0.1:9")
    assert status == 2
    assert output == (
        "hf: org/model is not in the cache and http://127.0.0.1:9 cannot be reached; check the "
        "connection, or give a downloaded directory."
    )


def test_offline_and_the_cache(hub, fetch):
    status, output = fetch("org/model", HF_HUB_OFFLINE="1")
    assert status == 2
    assert output == (
        "hf: org/model is not in the cache and HF_HUB_OFFLINE is set; unset it, or give a "
        "downloaded directory."
    )
    assert fetch("org/model") == (0, "")
    asked = len(hub.asked)
    assert fetch("org/model", HF_HUB_OFFLINE="1") == (0, "")
    assert len(hub.asked) == asked


def test_import_from_the_hub(hub, write_nano_mllama, single_process, tmp_path, monkeypatch):
    from huggingface_hub import snapshot_download

    from converters.import_hf import import_checkpoint
    from converters.verify import verify_checkpoint

    write_nano_mllama(tmp_path / "hf")
    hub.files = {path.name: path.read_bytes() for path in (tmp_path / "hf").iterdir()}
    monkeypatch.setattr(
        "converters.hub.snapshot_download",
        partial(snapshot_download, endpoint=hub.url, cache_dir=tmp_path / "cache"),
    )
    figures = import_checkpoint("mllama", "org/model", tmp_path / "ckpt")
    assert figures["tensors"] == 147
    for hf in ("hf://org/model", tmp_path / "hf"):
        assert verify_checkpoint(hf, tmp_path / "ckpt", logits=False).passed


def test_what_cannot_be_imported_is_refused_before_the_weights_are_fetched(
    hub, write_nano_mllama, single_process, tmp_path, monkeypatch, change_json
):
    from huggingface_hub import snapshot_download

    from converters.import_hf import import_checkpoint

    write_nano_mllama(tmp_path / "hf")
    change_json(
        tmp_path / "hf" / "config.json",
        lambda content: content["text_config"].update(tie_word_embeddings=True),
    )
    hub.files = {path.name: path.read_bytes() for path in (tmp_path / "hf").iterdir()}
    monkeypatch.setattr(
        "converters.hub.snapshot_download",
        partial(snapshot_download, endpoint=hub.url, cache_dir=tmp_path / "cache"),
    )
    with pytest.raises(ValueError, match="tie_word_embeddings"):
        import_checkpoint("mllama", "org/model", tmp_path / "ckpt")
    assert not any("safetensors" in path for path in hub.asked)
    assert not (tmp_path / "ckpt").exists()
