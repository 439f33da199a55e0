#!/usr/bin/env bash
# Makes an environment for each client that the tests meet the server with, and prints the variables that name them:
#     eval "$(tests/server/clients/make_environments.sh ~/clients)" && python -m pytest tests/server/clients
set -euo pipefail
folder=$(realpath -m "${1:?usage: make_environments.sh FOLDER}")
python=${PYTHON:-python3}

make() {  # name, requirement
    local home="$folder/$1"
    [ -x "$home/bin/python" ] || "$python" -m venv "$home" >&2
    "$home/bin/python" -m pip install --quiet --disable-pip-version-check "$2" >&2
    echo "export NANOVLLM_$(echo "$1" | tr '[:lower:]' '[:upper:]')_PYTHON=$home/bin/python"
}

make litellm "litellm[mcp]"  # mcp: it wants it for tools
make langchain langchain-openai
make llm llm
make lm_eval "lm-eval[api]"
make schemathesis schemathesis
