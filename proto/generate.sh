#!/bin/sh
# Generates Python and typed stubs from every .proto into proto/gen, the tables of outcomes, and the reference. Run by `make proto`; CI
# fails on a difference.
set -eu
cd "$(dirname "$0")"
python=${PYTHON:-../.venv/bin/python}
rm -rf gen && mkdir gen
PATH="$(dirname "$(command -v "$python")"):$PATH" "$python" -m grpc_tools.protoc -I . \
    --python_out=gen --grpc_python_out=gen --mypy_out=quiet:gen --mypy_grpc_out=quiet:gen \
    $(find utrn headend etcdpb -name '*.proto' | sort)
find gen -mindepth 1 -type d | while read -r folder; do
    echo '"""Generated from proto/ by `make proto`; do not edit."""' > "$folder/__init__.py"
done
set_file=$(mktemp)
trap 'rm -f "$set_file"' EXIT
"$python" -m grpc_tools.protoc -I . --include_imports --include_source_info --descriptor_set_out="$set_file" \
    $(find utrn/v1 -name '*.proto' | sort)
PYTHONPATH=gen "$python" generate_outcomes.py "$set_file" ..
PYTHONPATH=gen "$python" generate_reference.py "$set_file" ..
