"""The container of a site: whether its image can be had from here."""

from __future__ import annotations

import json
import re
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path

from launch.doctor.finding import Finding

_DEFAULT_REGISTRY = "registry-1.docker.io"
_KINDS = ", ".join(
    f"application/vnd.{kind}+json"
    for kind in (
        "oci.image.index.v1",
        "oci.image.manifest.v1",
        "docker.distribution.manifest.list.v2",
        "docker.distribution.manifest.v2",
    )
)
_SECONDS = 20


def check_container(image: str) -> Finding:
    """Look for an image: a file, or a name in a registry, which is asked without a password.

    Args:
        image: a path, or a name as enroot (`registry#name:tag`) or Docker spells it.
    """
    if image.startswith(("/", "./")):
        if Path(image).is_file():
            return Finding("container", "ok", image)
        return Finding("container", "bad", f"no file {image}", "import it with enroot")
    registry, name, tag = parse_image(image)
    try:
        status = _ask_registry(registry, name, tag)
    except OSError as error:
        advice = "fine where the image is there already; else import it on another machine"
        return Finding("container", "warn", f"{registry}: {error}", advice)
    if status == 200:
        return Finding("container", "ok", image)
    if status in (401, 403):
        advice = "log in to the registry where the jobs run"
        return Finding("container", "warn", f"{image} is not public", advice)
    return Finding("container", "bad", f"{registry} has no {name}:{tag}", "correct the site")


def parse_image(image: str) -> tuple[str, str, str]:
    """Return registry, name and tag (or digest) of an image's name."""
    image = image.removeprefix("docker://").replace("#", "/", 1)
    first, _, rest = image.partition("/")
    has_registry = rest and ("." in first or ":" in first or first == "localhost")
    registry, name = (first, rest) if has_registry else (_DEFAULT_REGISTRY, image)
    if "@" in name:
        name, _, tag = name.partition("@")
    else:
        name, _, tag = name.partition(":")
    if registry == _DEFAULT_REGISTRY and "/" not in name:
        name = f"library/{name}"
    return registry, name, tag or "latest"


def _ask_registry(registry: str, name: str, tag: str) -> int:
    """Return the status of a request for the image's manifest (OCI distribution, version 1.1)."""
    is_here = registry.partition(":")[0] in ("localhost", "127.0.0.1")
    url = f"http{'' if is_here else 's'}://{registry}/v2/{name}/manifests/{tag}"
    status, challenge = _head(url, None)
    asked = dict(re.findall(r'(\w+)="([^"]*)"', challenge))
    if status != 401 or "realm" not in asked:
        return status
    query = {key: asked[key] for key in ("service", "scope") if key in asked}
    with urllib.request.urlopen(
        f"{asked['realm']}?{urllib.parse.urlencode(query)}", timeout=_SECONDS
    ) as answer:
        content = json.load(answer)
    return _head(url, content.get("token") or content.get("access_token"))[0]


def _head(url: str, token: str | None) -> tuple[int, str]:
    """Return a status, and how the registry wants to be asked."""
    headers = {"Accept": _KINDS} | ({} if token is None else {"Authorization": f"Bearer {token}"})
    request = urllib.request.Request(url, headers=headers, method="HEAD")
    try:
        with urllib.request.urlopen(request, timeout=_SECONDS) as answer:
            return answer.status, ""
    except urllib.error.HTTPError as error:
        return error.code, error.headers.get("WWW-Authenticate", "")
