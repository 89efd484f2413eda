#!/usr/bin/env bash
# Make .venv: in a NeMo container on top of the container's packages, elsewhere from the lock.
set -euo pipefail
cd "$(dirname "$0")/.."

python="${PYTHON:-}"
if [ -z "$python" ]; then
    for candidate in python3.12 python3.11 python3; do
        if command -v "$candidate" >/dev/null 2>&1 &&
            "$candidate" -c 'import sys, ensurepip; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))' 2>/dev/null; then
            python="$candidate"
            break
        fi
    done
fi
if [ -z "$python" ]; then
    echo "error: PYTHON: no python 3.11 or 3.12 with venv was found; install one (python3-venv on Debian) or set PYTHON." >&2
    exit 2
fi

in_container() {
    "$python" - <<'PY' 2>/dev/null
import importlib.util, sys
names = ("nemo", "nemo_run", "megatron", "transformer_engine")
sys.exit(not all(importlib.util.find_spec(name) for name in names))
PY
}

if in_container; then
    echo "NeMo container found: its packages are used; only the tools for tests and checks are added."
    "$python" -m venv --clear --system-site-packages .venv
    .venv/bin/python -m pip install --quiet --requirement requirements/container.txt
else
    if [ ! -x .bootstrap/bin/uv ]; then
        "$python" -m venv --clear .bootstrap
        .bootstrap/bin/python -m pip install --quiet --require-hashes --only-binary :all: --requirement requirements/bootstrap.txt
    fi
    echo "Installing the locked environment into .venv (about 9 GB unpacked, minutes at first)."
    .bootstrap/bin/uv venv --quiet --clear --python "$python" .venv
    .bootstrap/bin/uv pip sync --quiet --python .venv/bin/python --require-hashes requirements/lock-develop.txt
fi
cat requirements/*.txt | cksum >.venv/.complete
