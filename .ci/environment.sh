#!/usr/bin/env bash
# Installs into an environment of its own: environment.sh DIRECTORY ARGUMENTS OF PIP. PYTHON names the interpreter.
set -euo pipefail
home=$1
shift
bin=$home/bin
[ "${OS:-}" = Windows_NT ] && bin=$home/Scripts
[ -x "$bin/python" ] || "${PYTHON:-python3}" -m venv "$home"
"$bin/python" -m pip install --quiet "$@"
touch "$home/installed"
