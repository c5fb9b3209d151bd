"""vLLM on a GPU, with each of its two model runners: engine and trainer agree, awake and after sleep; draws repeat.

Each runner in a process of its own: vLLM reads the choice when it is imported.
"""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.vllm,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vllm is not installed here"),
]
ROOT = Path(__file__).parent.parent.parent
RUNNERS = {"first": "0", "second": "1"}


def check(folder: Path, dtype: torch.dtype, deterministic: bool) -> None:
    """Two syncs with a sleep between, each within the tolerance; greedy completions are likely under the model; a part
    of a batch, alone, is drawn as in it where that is promised."""
    from gpu import bodies

    from iapo_bench.models.checkpoints import save_model
    from iapo_bench.rollout import Sampling
    from iapo_bench.rollout.load import make_engine
    from iapo_bench.rollout.vllm_engine import TOLERANCE
    from iapo_bench.worlds.datasets.micro import build_tokenizer

    model = bodies.build("smollm2-135m", dtype, "cuda")
    save_model(model, build_tokenizer(), folder)
    options = {"width": 256, "batch_size": 64, "gpu_memory": 0.3, "sleep": True, "deterministic": deterministic}
    engine = make_engine("vllm", folder, model, **options)
    prompts = [[7 + i % 5, 20, 8, 23, 25] for i in range(8)]
    sampling = Sampling(max_tokens=64, eos_ids=(), samples_per_prompt=4, seed=3)
    first = engine.generate(prompts, sampling)
    assert engine.asleep
    gap = engine.sync(model)
    assert 0 < gap < TOLERANCE[dtype]
    again = engine.generate(prompts, sampling)
    assert [c.token_ids for c in again] == [c.token_ids for c in first]
    if deterministic:
        alone = engine.generate(prompts[:1], sampling)
        assert [c.logprobs for c in alone] == [c.logprobs for c in first[:4]]
    for completion in first[:4]:
        ids = torch.tensor([prompts[0] + list(completion.token_ids)], device="cuda")
        with torch.no_grad():
            logp = torch.log_softmax(model(input_ids=ids).logits[0, 4:-1].float(), -1)
        expected = logp.gather(1, ids[0, 5:, None])[:, 0].cpu()
        assert float((torch.tensor(completion.logprobs) - expected).abs().mean()) < TOLERANCE[dtype]
    with torch.no_grad():
        model.get_input_embeddings().weight.mul_(1.2)
    assert engine.sync(model) < TOLERANCE[dtype]
    engine.close()


def run(folder: Path, runner: str, dtype: str, deterministic: bool = False) -> None:
    code = f"from gpu.test_vllm_gpu import *; check(Path({str(folder)!r}), torch.{dtype}, {deterministic})"
    environment = {**os.environ, "VLLM_USE_V2_MODEL_RUNNER": RUNNERS[runner]}
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("runner", RUNNERS)
def test_engine_and_trainer_agree(tmp_path, runner, dtype):
    run(tmp_path / "model", runner, dtype)


@pytest.mark.skipif(
    torch.cuda.is_available() and torch.cuda.get_device_capability() < (9, 0), reason="needs compute capability 9.0"
)
def test_deterministic_draws_do_not_depend_on_their_neighbours(tmp_path):
    run(tmp_path / "model", "second", "bfloat16", deterministic=True)
