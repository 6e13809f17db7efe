#!/usr/bin/env bash
# On a machine with an NVIDIA GPU and its driver, without the internet: do kernels and networks give the right
# results there, and how long do networks take? At most eight minutes. Prints, and keeps in gpu-results/, what was found.
#
# Wants this checkout's environment: pip install -e '.[test,cuda]' before. onnxruntime-gpu is timed beside it if installed.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python=${PYTHON:-python}
mkdir -p gpu-results

nvidia-smi --query-gpu=name,compute_cap,driver_version,memory.total --format=csv | tee gpu-results/gpu.csv

echo "--- kernels on the GPU"
QCOMPILER_ON_GPU=1 timeout 180 "$python" -m pytest tests/cuda/test_cuda_{attention,contraction,each,elementwise,lines,moves,narrow,recurrent,resize,rows,scatter}.py -m 'slow or not slow' -n 4 -q 2>&1 | tee gpu-results/kernels.txt | tail -n 20

echo "--- networks"
timeout 290 "$python" -m benchmarks.gpu measure --seconds 240 2>&1 | tee gpu-results/networks.txt
