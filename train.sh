#!/usr/bin/env bash
# Trains the published VISION V1 splits, each with its published settings, tests each five times, and sums it up in
# log/vision_v1. The same command again goes on where it was interrupted.
#
#   bash train.sh [KEY VALUE ...]    e.g. bash train.sh TRAIN.dataset_path /data/VISION_V1 TEST.dataset_path /data/VISION_V1
#
# After the settings it takes the options of `python -m tools.sweep`, for instance --shots 1 5, --seeds 54 55 56 or --list.
#
# SPLITS    splits to run, "0 1 2" unless set
# NUM_GPUS  processes, one per GPU, in place of the number of GPUs found
# PYTHON    the Python to run, else .venv/bin/python, else python3
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)

count_gpus() {
    local count=0
    if [[ -v CUDA_VISIBLE_DEVICES ]]; then
        count=$(tr ',' '\n' <<<"$CUDA_VISIBLE_DEVICES" | wc -l)
    elif command -v nvidia-smi >/dev/null; then
        count=$(nvidia-smi -L | grep -c '^GPU ' || true)
    fi
    echo $((count > 0 ? count : 1))
}

if [[ -z "${PYTHON:-}" ]]; then
    PYTHON=python3
    [[ ! -x "$here/.venv/bin/python" ]] || PYTHON=$here/.venv/bin/python
fi
[[ "${1:-}" != --opts ]] || shift
read -ra splits <<<"${SPLITS:-0 1 2}"
# -P: the modules of this program, not those that the current folder may hold
export PYTHONPATH="$here${PYTHONPATH:+:$PYTHONPATH}"
exec "$PYTHON" -P -m tools.sweep vision_v1 --splits "${splits[@]}" --shots 1 \
    --opts NUM_GPUS "${NUM_GPUS:-$(count_gpus)}" "$@"
