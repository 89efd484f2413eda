#!/usr/bin/env bash
# Make .venv: in a NeMo container on top of the container's packages, elsewhere from the lock.
set -euo pipefail
cd "$(dirname "$0")/.."

fits() {
    command -v "$1" >/dev/null 2>&1 &&
        "$1" -c 'import sys, venv; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))' 2>/dev/null
}

python="${PYTHON:-}"
if [ -z "$python" ]; then
    for candidate in python3 python3.12 python3.11; do
        if fits "$candidate"; then
            python="$candidate"
            break
        fi
    done
fi
if [ -z "$python" ] || ! fits "$python"; then
    echo "error: PYTHON: '${python:-python3}' is not a python 3.11 or 3.12 with venv; install one (python3-venv on Debian) or set PYTHON." >&2
    exit 2
fi

in_container() {
    "$python" - <<'PY' 2>/dev/null
import importlib.util, sys
names = ("nemo", "nemo_run", "megatron", "transformer_engine")
sys.exit(not all(importlib.util.find_spec(name) for name in names))
PY
}

rm -f .venv/.complete
if in_container; then
    echo "NeMo container found: its packages are used; only the tools for tests and checks are added."
    "$python" -m venv --clear --without-pip .venv
    # A path file and not --system-site-packages: the container's python may be an environment
    # itself, and a new one sees the packages of the base python only.
    "$python" - <<'PY'
import pathlib, site, sys
target = next(pathlib.Path(".venv/lib").glob("python3*/site-packages"))
paths = [path for path in sys.path if path.endswith(("site-packages", "dist-packages"))]
target.joinpath("container.pth").write_text("\n".join(dict.fromkeys(paths)) + "\n")
PY
    if "$python" -m pip --version >/dev/null 2>&1; then
        "$python" -m pip --python .venv/bin/python install --quiet --requirement requirements/container.txt
    else
        uv pip install --quiet --python .venv/bin/python --requirement requirements/container.txt
    fi
    .venv/bin/python -c 'import importlib.util as u; assert u.find_spec("nemo") and u.find_spec("transformer_engine")'
else
    if ! "$python" -c 'import ensurepip' 2>/dev/null; then
        echo "error: $python has no ensurepip; install the package python3-venv." >&2
        exit 2
    fi
    if [ ! -x .bootstrap/bin/uv ] || [ requirements/bootstrap.txt -nt .bootstrap/bin/uv ]; then
        "$python" -m venv --clear .bootstrap
        .bootstrap/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes --only-binary :all: --requirement requirements/bootstrap.txt
        touch .bootstrap/bin/uv
    fi
    echo "Installing the locked environment into .venv (about 9 GB unpacked, minutes at first)."
    .bootstrap/bin/uv venv --quiet --clear --python "$python" .venv
    .bootstrap/bin/uv pip sync --quiet --python .venv/bin/python --require-hashes requirements/lock-develop.txt
fi
touch .venv/.complete
