"""The training loop: rollout, grade, signals, credit, update; the same for every method.

Every random number of a step is derived from the seed and the step, so a resumed run is the same run; so is a run of
several processes (`parallel`), each of which takes a share of the groups. The budget counts generated completions: a
method that drops some trains on fewer, not on more.
"""

import json
import random
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from transformers import PreTrainedModel

from iapo_bench.batch import RolloutBatch
from iapo_bench.config.train import TrainConfig
from iapo_bench.credit import Credit
from iapo_bench.errors import UserError
from iapo_bench.files import to_json
from iapo_bench.machine import parallel
from iapo_bench.method import Method, require_groups
from iapo_bench.models import sharding
from iapo_bench.models.checkpoints import disable_dropout
from iapo_bench.models.lora import load_trainable_state, trainable_state
from iapo_bench.progress import progress
from iapo_bench.rollout import Completion, RolloutEngine, Sampling
from iapo_bench.rollout.collate import collate
from iapo_bench.seeds import numpy_stream, stream_seed, torch_stream
from iapo_bench.train.hooks import accepts, checked_credit, shaped_batch
from iapo_bench.train.log import Tracking, add_row, complaints, shortcomings, write_log
from iapo_bench.train.optimizer import make_optimizer
from iapo_bench.train.rewards import CORRECT, Rewards
from iapo_bench.train.rollouts import drop_rollouts, rollout_table, write_broken, write_rollout
from iapo_bench.train.signals import with_signals
from iapo_bench.train.state import devices, find_state, load_state, put_back, save_state
from iapo_bench.train.task import Task
from iapo_bench.train.trial import try_method
from iapo_bench.train.update import update
from iapo_bench.train.validation import validate
from iapo_bench.worlds import Problem
from iapo_bench.worlds.grading import Outcome

PHASES = ("rollout", "grade", "signals", "update", "other")


@dataclass
class _Draw:
    """The completions of a step: accepted groups, and counts over all groups, dropped ones included."""

    problems: list[int]
    completions: list[Completion]
    judged: list[Outcome]
    formatted: list[bool]
    rewards: list[float]
    paid: list[dict[str, float]]
    outcomes: Counter
    lengths: list[int]
    truncated: int
    draws: int


class Trainer:
    """Trains `model` in place with one method. `reference`: the initial model, needed for a KL term only; for a model
    with adapters, `model` itself. Raises UserError without training problems or with groups of one, ValueError for a KL
    term without a reference."""

    def __init__(
        self,
        method: Method,
        config: TrainConfig,
        seed: int,
        task: Task,
        model: PreTrainedModel,
        engine: RolloutEngine,
        reference: PreTrainedModel | None = None,
    ) -> None:
        require_groups(config.group_size)
        if not task.prompts:
            raise UserError("there are no training problems")
        if method.loss.kl_coef and reference is None:
            raise ValueError("a KL term needs the reference model")
        self.method = method
        self.config = config
        self.seed = seed
        self.task = task
        self.rewards = task.rewards or Rewards([Problem("", "", gold) for gold in task.golds])
        self.model = model
        self.engine = engine
        self.reference = reference
        disable_dropout(model)
        self.optimizer = make_optimizer(model, config.lr)
        self.broken: Path | None = None  # directory for a batch that broke a step; None: keep none
        self.rollouts: Path | None = None  # directory for the rollouts of chosen steps
        self.cursor = 0  # problems drawn so far, over all epochs
        self.generated = 0  # completions so far
        self.rows: list[dict[str, Any]] = []
        self._epoch: tuple[int, list[int]] = (-1, [])
        self._clock: dict[str, float] = {}
        self._saved = time.monotonic()  # when the last checkpoint was made, or training began

    @property
    def finished(self) -> bool:
        """Whether the budget leaves no room for another group."""
        return self.generated + self.config.group_size > self.config.completions

    def run(
        self,
        state: Path | None = None,
        broken: Path | None = None,
        log: Path | None = None,
        rollouts: Path | None = None,
        tracking: Tracking | None = None,
    ) -> list[dict[str, Any]]:
        """Train until the budget is spent; return the rows of `train.jsonl`.

        `state`: path of the checkpoint to resume from and to keep up to date; the previous one stays beside it, for use
        if the newer one is damaged. Any number of processes can resume from it. `log`: file that gets the rows of the
        checkpoint, then one per step; `tracking` gets the same rows. `rollouts`: directory for the rollouts of the
        steps in `keep_rollouts`.

        Raises UserError if only some processes see `state`, if the method fails, and if a number is not finite; the
        batch is then saved in the directory `broken`, and `state` stays at the last good checkpoint.
        """
        self.broken, self.rollouts = broken, rollouts
        if state is not None:
            self._resume(state)
        if log is not None and parallel.is_main():
            write_log(log, self.rows)
        if rollouts is not None and parallel.is_main():
            drop_rollouts(rollouts, after=len(self.rows) - 1)
        with (
            progress(
                total=self.config.completions,
                initial=self.generated,
                desc=self.method.name,
                unit="completion",
                disable=not parallel.is_main(),
            ) as bar,
            tracking(self.rows) if tracking and parallel.is_main() else nullcontext(lambda row: None) as tell,
        ):
            while not self.finished:
                before = self.generated
                row = self.step()
                if log is not None and parallel.is_main():
                    add_row(log, row)
                tell(row)
                for complaint in complaints(row, self.config) if parallel.is_main() else ():
                    bar.write(f"{self.method.name}: step {row['step']}: {complaint}", file=sys.stderr)
                bar.update(self.generated - before)
                bar.set_postfix(correct=f"{row['correct']:.2f}", length=f"{row['length']:.0f}", refresh=False)
                if state is not None and self._is_due():
                    self._save(state)
                    self._saved = time.monotonic()
        if log is not None and parallel.is_main():
            write_log(log, self.rows)  # what was appended may not be on the disk yet
        for shortcoming in shortcomings(self.rows, self.config) if parallel.is_main() else ():
            click.echo(f"warning: {self.method.name}: {shortcoming}", err=True)
        return self.rows

    def _is_due(self) -> bool:
        """Whether a checkpoint is due, by the main rank's clock for all ranks."""
        if len(self.rows) % self.config.checkpoint_every:
            return False
        return parallel.gather([time.monotonic() - self._saved >= 60 * self.config.checkpoint_minutes])[0]

    def step(self) -> dict[str, Any]:
        """Run one rollout and its updates; return its row of `train.jsonl`."""
        started = time.perf_counter()
        self._clock = dict.fromkeys(PHASES, 0.0)
        step = len(self.rows)
        # Code that draws without its own generator then draws the same in every run.
        seed = stream_seed(self.seed, "step", step)
        torch.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed % 2**32)  # noqa: NPY002
        lr = self._pace()
        draw = self._draw(step)
        row: dict[str, Any] = {
            "step": step,
            "completions": len(draw.lengths),
            "completions_total": self.generated,
            "draws": draw.draws,
            "groups": len(draw.problems),
            "correct": draw.outcomes[Outcome.CORRECT] / len(draw.lengths),
            "length": sum(draw.lengths) / len(draw.lengths),
            "truncated": draw.truncated / len(draw.lengths),
            "outcomes": {outcome.value: draw.outcomes[outcome] for outcome in Outcome},
            "rewards": {name: sum(paid[name] for paid in draw.paid) / len(draw.paid) for name in self.rewards.weights},
            "lr": lr,
            "updates": self.config.updates_per_rollout,
            "updates_moved": 0,
        }
        if draw.problems:
            row |= self._learn(draw, step)
        seconds = time.perf_counter() - started
        self._clock["other"] = seconds - sum(self._clock.values())
        row |= {f"seconds_{phase}": round(self._clock[phase], 6) for phase in PHASES}
        row["tokens"] = sum(draw.lengths)
        row["tokens_trained"] = sum(len(completion.token_ids) for completion in draw.completions)
        row["tokens_per_second"] = round(row["tokens"] / seconds, 3)
        looked, every = self.task.validation, self.config.validate_every
        if looked and every and ((step + 1) % every == 0 or self.finished):
            row |= validate(looked, self.task, self.engine, self.config, self.seed)
        self.rows.append(row)
        return row

    def _pace(self) -> float:
        """Set and return the learning rate of the step: constant by default, or decaying linearly with generated
        completions."""
        share = 1 - self.generated / self.config.completions if self.config.lr_schedule == "linear" else 1.0
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.lr * share
        return self.config.lr * share

    def _draw(self, step: int) -> _Draw:
        """Generate groups until a batch is full, the draws are used up or the budget is spent."""
        config = self.config
        draw = _Draw([], [], [], [], [], [], Counter(), [], 0, 0)
        while len(draw.problems) < config.prompts_per_step and draw.draws < config.max_draws and not self.finished:
            wanted = config.prompts_per_step - len(draw.problems)
            affordable = (config.completions - self.generated) // config.group_size
            problems = [self._next_problem() for _ in range(min(wanted, affordable))]
            own = parallel.share(len(problems) * config.group_size, config.group_size)
            sampling = Sampling(
                max_tokens=config.max_tokens,
                eos_ids=self.task.eos_ids,
                samples_per_prompt=config.group_size,
                temperature=config.temperature,
                seed=stream_seed(self.seed, "sampling", step, draw.draws),
                first_index=own.start,
            )
            with self._phase("rollout"):
                prompts = [self.task.prompts[p] for p in problems[parallel.share(len(problems))]]
                completions = parallel.gather(self.engine.generate(prompts, sampling))
            with self._phase("grade"):
                texts = self.task.texts(completions[own])
                asked = [p for p in problems for _ in range(config.group_size)]
                judged = self.task.grade(texts, [self.task.golds[p] for p in asked[own]])
                token_ids = [completion.token_ids for completion in completions[own]]
                paid = parallel.gather(self.rewards.pay(asked[own], texts, token_ids, judged))
                outcomes = parallel.gather(judged)
                formatted = parallel.gather([self.task.formatted(text) for text in texts])
            draw.draws += 1
            self.generated += len(completions)
            draw.outcomes.update(outcomes)
            draw.paid += paid
            draw.lengths += [len(c.token_ids) for c in completions]
            draw.truncated += sum(c.finish_reason == "length" for c in completions)
            for i, problem in enumerate(problems):
                group = slice(i * config.group_size, (i + 1) * config.group_size)
                correct = [outcome is Outcome.CORRECT for outcome in outcomes[group]]
                if accepts(self.method, torch.tensor(correct)):
                    draw.problems.append(problem)
                    draw.completions += completions[group]
                    draw.judged += outcomes[group]
                    draw.formatted += formatted[group]
                    draw.rewards += [self.rewards.total(each) for each in paid[group]]
        return draw

    def _next_problem(self) -> int:
        epoch, place = divmod(self.cursor, len(self.task.prompts))
        if self._epoch[0] != epoch:
            order = numpy_stream(self.seed, "data", epoch).permutation(len(self.task.prompts))
            self._epoch = (epoch, order.tolist())
        self.cursor += 1
        return self._epoch[1][place]

    def _collate(self, draw: _Draw) -> RolloutBatch:
        batch = collate(
            [self.task.prompts[problem] for problem in draw.problems],
            draw.completions,
            [outcome is Outcome.CORRECT for outcome in draw.judged],
            draw.formatted,
            group_size=self.config.group_size,
            max_tokens=self.config.max_tokens,
            pad_id=int(self.task.tokenizer.pad_token_id),
            device=self.model.device,
        )
        return replace(batch, rewards_B=torch.tensor(draw.rewards, device=batch.rewards_B.device))

    def _learn(self, draw: _Draw, step: int) -> dict[str, Any]:
        """Signals, credit and update. If one fails, saves the batch as computed so far and raises UserError."""
        batch, credit = self._collate(draw), None
        try:
            with self._phase("signals"):
                batch = with_signals(batch, self.method, self.config, self.task, self.model, self.reference)
            shaped = shaped_batch(self.method, batch).validate()
            credit = checked_credit(self.method, shaped, torch_stream(self.seed, "method", step))
            if not any(row["updates_moved"] for row in self.rows):
                try_method(self.method, batch, self.seed, own_rewards=self.rewards.weights != CORRECT)
            batch = shaped
            self._keep_rollout(draw, batch, credit, step)
            with self._phase("update"):
                stats = update(
                    self.model,
                    self.optimizer,
                    batch,
                    credit,
                    self.method.loss,
                    self.config,
                    generator=torch_stream(self.seed, "local rows", step),
                )
        except (UserError, ValueError) as error:
            kept = ""
            if self.broken is not None and parallel.is_main():
                try:
                    path = write_broken(self.broken, step, batch, credit, self.task.tokenizer, method=self.method.name)
                    kept = f"; its batch is in {path}, for torch.load"
                except OSError as lost:
                    kept = f"; its batch is lost ({lost})"
            raise UserError(f"step {step}: {error}{kept}") from error
        with self._phase("update"):
            gaps = parallel.gather([self.engine.sync(self.model)])
        rewards_NG = batch.rewards_B.view(-1, batch.group_size)
        mask_BT = batch.completion_mask_BT
        return {
            "reward": float(batch.rewards_B.mean()),
            "formatted": float(batch.formatted_B.float().mean()),
            "zero_variance_groups": float((rewards_NG.amax(1) == rewards_NG.amin(1)).float().mean()),
            # A free, unbiased estimate of the mean entropy at the sampling temperature.
            "entropy": float(-batch.sampler_logp_BT[mask_BT].mean()),
            **stats,
            # The largest gap over the ranks.
            **({} if gaps[0] is None else {"sync_gap": max(gaps)}),
        }

    def _keep_rollout(self, draw: _Draw, batch: RolloutBatch, credit: Credit, step: int) -> None:
        if self.rollouts is None or step not in self.config.keep_rollouts or not parallel.is_main():
            return
        problems = [self.rewards.problems[i].id for i in draw.problems]
        table = rollout_table(batch, credit, self.task.tokenizer, problems=problems, outcomes=draw.judged)
        write_rollout(self.rollouts, step, table, method=self.method.name)

    @contextmanager
    def _phase(self, name: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        self._clock[name] += time.perf_counter() - started

    def _save(self, path: Path) -> None:
        method = self.method.state_dict()
        state = {
            "model": trainable_state(self.model),
            "optimizer": self.optimizer.state_dict(),
            "method": method,
            "devices": devices(method),
            "cursor": self.cursor,
            "generated": self.generated,
            "rows": to_json(self.rows),
        }
        save_state(state, path, f"step {len(self.rows) - 1}")

    def _resume(self, path: Path) -> None:
        """Resume from the checkpoint `path` or, if that is damaged or missing, from the previous one, if any."""
        shapes = {name: weight.shape for name, weight in trainable_state(self.model).items()}
        found, damaged = find_state(path, shapes)
        if found:
            self._load(found)
        if damaged and parallel.is_main():
            instead = f"goes on from step {len(self.rows)}" if found else "starts anew"
            click.echo(f"warning: {' and '.join(map(str, damaged))}: damaged, the run {instead}", err=True)

    def _load(self, path: Path) -> None:
        state = load_state(path, self.model)
        load_trainable_state(self.model, sharding.distribute(state["model"], trainable_state(self.model)))
        self.optimizer.load_state_dict(state["optimizer"])
        self.method.load_state_dict(put_back(state["method"], state["devices"], self.model.device))
        self.cursor, self.generated = state["cursor"], state["generated"]
        self.rows = json.loads(state["rows"])
        self.engine.sync(self.model)
