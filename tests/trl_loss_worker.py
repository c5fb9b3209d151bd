"""TRL's loss and gradients for the cases of a job; run in TRL's own environment, which does not have this package.

`python trl_loss_worker.py JOB`: a JSON file that names the model's directory, a safetensors file of inputs, the cases
(fields of GRPOConfig) and the file to write.
"""

import json
import sys
from pathlib import Path

import torch
from datasets import Dataset
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM
from trl import GRPOConfig, GRPOTrainer


def main() -> None:
    job = json.loads(Path(sys.argv[1]).read_text())
    inputs = load_file(job["inputs"])
    found = {}
    for number, case in enumerate(job["cases"]):
        model = AutoModelForCausalLM.from_pretrained(job["model"], dtype=torch.float32)
        arguments = GRPOConfig(
            output_dir=job["scratch"],
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            per_device_train_batch_size=len(inputs["advantages"]),
            num_generations=job["group_size"],
            max_completion_length=job["max_tokens"],
            report_to="none",
            use_bias_correction_kl=False,  # else TRL multiplies the KL term by the ratio
            **case,
        )
        trainer = GRPOTrainer(
            model=model,
            reward_funcs=lambda completions, **_: [0.0] * len(completions),
            args=arguments,
            train_dataset=Dataset.from_list([{"prompt": "1"}] * len(inputs["advantages"])),
        )
        model.eval()  # no accumulation: the batch is the whole
        loss = trainer._compute_loss(model, dict(inputs))
        loss.backward()
        found[f"{number}.loss"] = loss.detach()
        found |= {f"{number}.{name}": weight.grad for name, weight in model.named_parameters()}
    save_file(found, job["out"])


if __name__ == "__main__":
    main()
