#!/usr/bin/env bash
# Trains the published VISION V1 splits, each with its published settings, and tests each five times.
#
#   bash train.sh [KEY VALUE ...]    e.g. bash train.sh TRAIN.dataset_path /data/VISION_V1 TEST.dataset_path /data/VISION_V1
#
# SPLITS    splits to run, "0 1 2" unless set
# NUM_GPUS  processes, one per GPU, in place of the number of GPUs found
# PYTHON    the Python to run, else .venv/bin/python, else python3
set -euo pipefail
here=$(dirname "$0")
config=$here/method_config/VISION_V1/SOFS.yaml
area_resize_ratio=(0.01 0.005 0.01)
smooth_r=(1 1 1e5)

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
output=./log
for ((i = 1; i <= $#; i += 2)); do
    value=$((i + 1))
    case "${!i}" in
        OUTPUT_DIR) output=${!value:?OUTPUT_DIR needs a folder} ;;
        RUN_NAME | DATASET.split)
            echo "error: train.sh sets ${!i} itself; choose splits with SPLITS=\"0 2\", or run train.py" >&2
            exit 2
            ;;
    esac
done

for split in ${SPLITS:-0 1 2}; do
    run=VISION_V1_split$split
    settings=(DATASET.split "$split" DATASET.area_resize_ratio "${area_resize_ratio[split]}"
        TRAIN.SOFS.smooth_r "${smooth_r[split]}" NUM_GPUS "${NUM_GPUS:-$(count_gpus)}")
    "$PYTHON" "$here/train.py" --cfg "$config" --opts "${settings[@]}" RUN_NAME "$run" \
        TRAIN_SETUPS.TEST_SETUPS.test_state False "$@"
    "$PYTHON" "$here/test.py" --cfg "$config" --opts "${settings[@]}" RUN_NAME "${run}_test" \
        TEST.load_checkpoint True TEST.load_model_path "$output/$run/checkpoints/head.safetensors" \
        DATASET.few_shot_repeated_multiple 5 "$@"
done
