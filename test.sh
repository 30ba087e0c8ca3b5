#!/bin/sh
# Segments the query images of open domain objects with a trained head: the published one, ./SOFS_model.pth, or yours.
#
#   sh test.sh [KEY VALUE ...]    e.g. sh test.sh DATASET.open_domain_test_object my_part TEST.method prior
#
# CFG     YAML files, separated by spaces, in place of method_config/Open_Domain/SOFS.yaml
# PYTHON  the Python to run, else .venv/bin/python, else python3
set -eu
here=$(dirname "$0")
if [ -z "${PYTHON:-}" ]; then
    PYTHON=python3
    if [ -x "$here/.venv/bin/python" ]; then PYTHON=$here/.venv/bin/python; fi
fi
if [ "${1:-}" = --opts ]; then shift; fi
set -f  # CFG is split at its spaces, nothing more
# shellcheck disable=SC2086
exec "$PYTHON" "$here/test.py" --cfg ${CFG:-"$here/method_config/Open_Domain/SOFS.yaml"} --opts "$@"
