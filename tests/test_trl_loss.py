"""Every objective that TRL 1.16 has too: the same loss and the same gradient, from TRL in an environment of its own."""

import json
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_update import gradients, make_rollout

from baselines.cispo import CISPO
from baselines.gspo import GSPO
from iapo_bench.bench.core import trl_python
from iapo_bench.method import Credit, LossSpec
from iapo_bench.models.checkpoints import save_model
from iapo_bench.signals.statistics import token_statistics

PROJECT = Path(__file__).parent.parent
CASES = {
    "GRPO": (LossSpec(clip_high=0.28), {"loss_type": "grpo", "epsilon_high": 0.28}),
    "DAPO": (LossSpec(clip_high=0.28, reduction="token_mean"), {"loss_type": "dapo", "epsilon_high": 0.28}),
    "Dr. GRPO": (LossSpec(reduction="constant"), {"loss_type": "dr_grpo"}),
    "KL": (LossSpec(kl_coef=0.04), {"loss_type": "grpo", "beta": 0.04}),
    # TRL's epsilon_high of CISPO is the cap itself.
    "CISPO": (CISPO().loss, {"loss_type": "cispo", "epsilon_high": 5.0}),
    "CISPO, capped": (replace(CISPO().loss, clip_high=0.1), {"loss_type": "cispo", "epsilon_high": 1.1}),
    "GSPO": (
        GSPO().loss,
        {"loss_type": "grpo", "importance_sampling_level": "sequence", "epsilon": 3e-4, "epsilon_high": 4e-4},
    ),
    "GSPO, wide": (
        replace(GSPO().loss, clip_low=0.2, clip_high=0.3, kl_coef=0.04),
        {
            "loss_type": "grpo",
            "importance_sampling_level": "sequence",
            "epsilon": 0.2,
            "epsilon_high": 0.3,
            "beta": 0.04,
        },
    ),
    "CISPO by sequence": (
        replace(CISPO().loss, ratio="sequence", clip_high=0.02),
        {"loss_type": "cispo", "importance_sampling_level": "sequence", "epsilon_high": 1.02},
    ),
}


def rollout(model):
    """A batch with an older policy and a reference, and one advantage a row, as TRL has them."""
    batch, _ = make_rollout()
    mask = batch.completion_mask_BT
    generator = torch.Generator().manual_seed(5)
    flat, _ = token_statistics(model, batch, temperature=1.0, entropy=False)
    logp = torch.zeros(mask.shape).masked_scatter(mask, flat.detach())
    old, reference = ((logp + torch.randn(mask.shape, generator=generator) * size) * mask for size in (0.2, 0.5))
    advantages_B = torch.randn(len(mask), generator=generator)
    batch = replace(batch, old_logp_BT=old, ref_logp_BT=reference)
    return batch, advantages_B, Credit(advantages_B[:, None] * mask, mask.float())


@pytest.mark.slow
def test_losses_and_gradients_are_those_of_trl(model, tokenizer, tmp_path):
    batch, advantages_B, credit = rollout(model)
    save_model(model, tokenizer, tmp_path / "model", notes={})
    inputs = {
        "prompt_ids": batch.prompt_ids_BP,
        "prompt_mask": batch.prompt_mask_BP.long(),
        "completion_ids": batch.completion_ids_BT,
        "completion_mask": batch.completion_mask_BT.long(),
        "advantages": advantages_B,
        "old_per_token_logps": batch.old_logp_BT,
        "ref_per_token_logps": batch.ref_logp_BT,
        "num_items_in_batch": batch.completion_mask_BT.sum(),
    }
    save_file(inputs, tmp_path / "inputs.safetensors")
    job = {
        "model": str(tmp_path / "model"),
        "inputs": str(tmp_path / "inputs.safetensors"),
        "cases": [case for _, case in CASES.values()],
        "group_size": batch.group_size,
        "max_tokens": batch.max_tokens,
        "scratch": str(tmp_path / "scratch"),
        "out": str(tmp_path / "found.safetensors"),
    }
    (tmp_path / "job.json").write_text(json.dumps(job))
    python = trl_python(PROJECT / ".bench" / "trl")
    worker = Path(__file__).with_name("trl_loss_worker.py")
    done = subprocess.run([python, worker, tmp_path / "job.json"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    found = load_file(tmp_path / "found.safetensors")
    for number, (name, (spec, _)) in enumerate(CASES.items()):
        sums, got = gradients(model, batch, credit, spec, 50)
        assert sums["loss"] == pytest.approx(found[f"{number}.loss"].item(), abs=1e-6), name
        for (parameter, _), gradient in zip(model.named_parameters(), got, strict=True):
            theirs = found[f"{number}.{parameter}"]
            torch.testing.assert_close(
                gradient, theirs, atol=1e-6, rtol=0, msg=lambda text, name=name: f"{name}: {text}"
            )
        assert max(float(gradient.abs().max()) for gradient in got) > 1e-3, name
