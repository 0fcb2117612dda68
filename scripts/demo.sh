#!/usr/bin/env bash
# Plan, train, predict and evaluate on 48 real MR scans; about three and a half minutes on two cores.
# Usage: scripts/demo.sh [TIME]     TIME is the training budget (default: 3m)
set -euo pipefail
cd "$(dirname "$0")/.."

scripts/setup.sh
export PATH="$PWD/.venv/bin:$PATH"
data=$PWD/tests/data/Task004_Hippocampus

rm -rf demo_workspace
mkdir -p demo_workspace/raw
cp -r "$data" demo_workspace/raw/
cd demo_workspace

echo "--- 1. measure the data and this machine, write a plan"
autoseg_plan Task004_Hippocampus --time-budget "${1:-3m}"

echo "--- 2. train one fold"
autoseg_train Task004 fold 0

echo "--- 3. segment scans that were not used in training"
autoseg_predict -i "$data/imagesTs" -o predictions

echo "--- 4. compare with the reference label maps"
autoseg_evaluate -g "$data/labelsTs" -p predictions -i "$data/imagesTs"

echo "model: $PWD/models/Task004_Hippocampus/default"
