#!/usr/bin/env bash
# All that only a GPU can tell, in under six minutes: bash benchmarks/on_a_gpu.sh [folder for the output]
#
# It needs one NVIDIA GPU of sm_80 or later and `pip install -e '.[gpu,dev]'`; mamba-ssm, causal-conv1d, compute-sanitizer
# and ncu (Nsight Compute) add their parts where they are installed. A part that fails does not stop the others; the exit
# status is then 1. Commit what it leaves in the folder, with a table like those in benchmarks/results/*.md.
set -u
cd "$(dirname "$0")/.."
out=${1:-benchmarks/results}
mkdir -p "$out" || exit 2
log=$out/gpu-$(date -u +%Y-%m-%d).txt
failed=0

part() { # seconds, then a command
  local limit=$1
  shift
  echo "== $*" | tee -a "$log"
  timeout "$limit" "$@" 2>&1 | tee -a "$log"
  local status=${PIPESTATUS[0]}
  [ "$status" -eq 0 ] || { failed=1; echo "== ended with status $status (124: cut after $limit s)" | tee -a "$log"; }
}

vmp=${VMP:-vmp}
# The order is that of importance: what comes last is what a short loan of a machine may cut.
part 190 "$vmp" bench gpu --out "$out"
part 15 "$vmp" bench host --device cuda
part 20 "$vmp" bench rows
if command -v ncu > /dev/null; then
  # Instructions, issue slots and occupancy of each kernel at M, 8 frames, batch 16.
  metrics=smsp__inst_executed.sum,gpu__time_duration.sum,smsp__issue_active.avg.pct_of_peak_sustained_active
  metrics+=,sm__warps_active.avg.pct_of_peak_sustained_active,smsp__inst_executed_pipe_xu.sum
  part 40 ncu --clock-control none -k regex:scan_ -c 6 --metrics "$metrics" \
    "${PYTHON:-python}" -P -c "from pipeline.bench.gpu import time_scan; time_scan(16, 'm', 8)"
fi
part 90 "${PYTHON:-python}" -m pytest -q -x -m gpu tests/model/scan/test_scan_mamba.py tests/dist/test_golden_curve.py
exit $failed
