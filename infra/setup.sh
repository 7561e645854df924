#!/usr/bin/env bash
# Make or refresh the virtual environment in .venv. Usage: infra/setup.sh STAMP_FILE
set -euo pipefail
cd "$(dirname "$0")/.."
stamp=$1
python=${PYTHON:-python3}

"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
    echo "Python >= 3.11 is needed; '$python' is $("$python" --version 2>&1). Set PYTHON=python3.11 (or newer)." >&2
    exit 1
}
"$python" -c 'import ensurepip, venv' 2>/dev/null || {
    echo "Python's venv module is missing. On Debian or Ubuntu: sudo apt-get install python3-venv" >&2
    exit 1
}
if [ ! -d .venv ]; then
    free_kb=$(df -Pk . | awk 'NR == 2 {print $4}')
    if [ "$free_kb" -lt 12000000 ]; then
        echo "About 12 GB of free disk are needed for the environment (torch with CUDA), only $((free_kb / 1000000)) GB are free here." >&2
        exit 1
    fi
    "$python" -m venv .venv
fi
echo "Setting up .venv (a few minutes the first time) ..."
.venv/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
# A reader for the tests. What it asks for would put opencv-python in the place of opencv-python-headless.
.venv/bin/python -m pip install --quiet --disable-pip-version-check --no-deps lvis==0.5.3
rm -f .venv/.stamp-*
touch "$stamp"
