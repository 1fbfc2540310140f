#!/usr/bin/env bash
# The tour: renders videos, trains three tasks on two processes, scores tracking against baselines, draws.
# Everything lands in runs/demo; a second call goes on where the first stopped.
# shellcheck source-path=SCRIPTDIR source=setup.sh
set -euo pipefail
cd "$(dirname "$0")/.."
# In a checkout videossl is installed first; where there is none, as in the Docker image, it is there.
if [ -f pyproject.toml ]; then source tools/setup.sh ""; fi

work=runs/demo
videossl synthesize -o "$work/synthetic" --videos 24 --seconds 3
videossl scan "$work/synthetic/videos" -o "$work/videos.parquet"
# Two processes of one thread each. --local_addr: not every machine can resolve its own name.
OMP_NUM_THREADS=1 torchrun --local_addr=localhost --nproc_per_node=2 -m videossl train --config demo \
    data.manifest="$work/videos.parquet" out="$work/run"
videossl track --checkpoint "$work/run" --davis "$work/synthetic/davis" --split val \
    --baselines identity,lab,untrained --out "$work/tracking"
videossl report "$work/run" --results "$work/tracking" -o "$work/report.html"
echo
echo "the run on one page: $work/report.html"
echo "the tracking on one page, with its videos: $work/tracking/index.html"
echo "the scores: $work/tracking/table.txt; the training: $work/run/train.log, tensorboard --logdir $work/run/tb"
