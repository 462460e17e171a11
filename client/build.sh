#!/bin/sh
# Builds the client kit's wheel into FOLDER: the kit and the callers' contract, and nothing of the service.
set -eu
cd "$(dirname "$0")/.."
folder=${1:?"a folder for the wheel is needed"}
python=${PYTHON:-.venv/bin/python}
made=$(mktemp -d)
trap 'rm -rf "$made"' EXIT
cp -r client/pyproject.toml client/README.md client/utrn_client LICENSE "$made"
mkdir -p "$made/utrn/v1"
cp proto/gen/utrn/__init__.py "$made/utrn/"
cp proto/gen/utrn/v1/*.py proto/gen/utrn/v1/*.pyi "$made/utrn/v1/"
find "$made" -name __pycache__ -prune -exec rm -rf {} +
"$python" -m pip wheel --quiet --disable-pip-version-check --no-deps --no-build-isolation --wheel-dir "$folder" "$made"
