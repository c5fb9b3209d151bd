"""The micro world: right answers, known roles, checks with a purpose, splits that do not meet."""

import random

import pytest
from transformers import AutoTokenizer

from iapo_bench.errors import UserError
from iapo_bench.models.checkpoints import build_micro, load_tokenizer, save_model
from iapo_bench.train.sft import TaughtSFT, teach_micro
from iapo_bench.worlds import SPLITS
from iapo_bench.worlds.datasets.micro import VOCABULARY, MicroWorld, Role, evaluate, token_roles
from iapo_bench.worlds.grading import Outcome, grade_digits, is_formatted

WORLD = MicroWorld(n_train=300, n_validation=50, n_test=50)


def traces(world: MicroWorld, n: int = 300):
    rng = random.Random(0)
    for problem in world.load("train")[:n]:
        yield problem, world.write_trace(problem.question, rng)


@pytest.mark.parametrize(
    ("question", "answer"), [("7 + 8 * 2 = ?", 30), ("9 - 4 - 5 = ?", 0), ("2 * 3 + 1 * 9 = ?", 63)]
)
def test_chains_are_worked_from_the_left(question, answer):
    assert evaluate(question) == answer


def test_splits_are_disjoint_and_reproducible():
    splits = {split: WORLD.load(split) for split in SPLITS}
    assert [len(splits[split]) for split in SPLITS] == [300, 50, 50]
    questions = [problem.question for problems in splits.values() for problem in problems]
    assert len(set(questions)) == len(questions)
    assert splits == {split: MicroWorld(n_train=300, n_validation=50, n_test=50).load(split) for split in SPLITS}
    assert splits["test"] != MicroWorld(n_train=300, n_validation=50, n_test=50, seed=1).load("test")
    assert MicroWorld(n_train=3, n_validation=50, n_test=50).load("test") == splits["test"]


def test_warm_start_never_teaches_a_problem_of_a_split():
    held_out = {problem.question for split in SPLITS for problem in WORLD.load(split)}
    taught = {question for question, _ in WORLD.traces(500)}
    assert not held_out & taught
    assert max(question.count("= ?") for question in taught) == 1
    assert max(len(question.split()) for question in taught) <= 2 * WORLD.taught_terms + 1


def test_roles_are_known_for_every_trace_even_when_only_its_words_are():
    seen = set()
    for _, trace in traces(WORLD):
        words = [word for word, _ in trace]
        assert token_roles(words) == [role for _, role in trace]
        seen |= {role for _, role in trace}
    assert seen == set(Role)


def test_the_needed_tokens_alone_are_a_full_derivation():
    terse = MicroWorld(n_train=300, slip=0, check=0, filler=0, restate=0)
    for problem, trace in traces(terse):
        words = [word for word, _ in trace]
        assert {role for _, role in trace} == {Role.NEEDED}
        assert grade_digits(" ".join(words[:-1]), problem.answer) is Outcome.CORRECT
        assert words.count("=") == len(problem.question.split()) // 2 - 1


def test_only_a_check_mends_a_slip():
    def accuracy(**chances) -> float:
        world = MicroWorld(n_train=300, slip=0.3, **chances)
        graded = [grade_digits(" ".join(w for w, _ in trace), p.answer) for p, trace in traces(world)]
        return sum(outcome is Outcome.CORRECT for outcome in graded) / len(graded)

    assert accuracy(check=1.0) == 1.0
    assert accuracy(check=0.0) < 0.5


def test_traces_keep_to_the_format():
    for _, trace in traces(WORLD):
        assert is_formatted(" ".join(word for word, _ in trace[:-1]))


def test_the_tokenizer_survives_a_checkpoint(tmp_path, tokenizer):
    """What other programs load with AutoTokenizer splits words, fillers and tags as training did."""
    save_model(build_micro(tokenizer, hidden=32, layers=1, heads=2, seed=0), tokenizer, tmp_path / "model")
    text = "7 + 8 = ? <think> so 7 + 8 = 1 5 ; </think><answer> 1 5 </answer>"
    for loaded in (load_tokenizer(tmp_path / "model"), AutoTokenizer.from_pretrained(tmp_path / "model")):
        ids = loaded(text, add_special_tokens=False).input_ids
        assert [VOCABULARY[i] for i in ids] == text.replace("><", "> <").split()
        assert loaded.decode(ids).split() == text.replace("><", "> <").split()
        assert (loaded.pad_token, loaded.eos_token) == ("<pad>", "<eos>")


def test_a_padding_token_without_an_embedding_is_not_used(tmp_path, tokenizer):
    save_model(build_micro(tokenizer, hidden=32, layers=1, heads=2, seed=0), tokenizer, tmp_path)
    other = AutoTokenizer.from_pretrained(tmp_path)
    other.add_special_tokens({"pad_token": "<new>"})
    other.save_pretrained(tmp_path)
    assert load_tokenizer(tmp_path).pad_token == "<eos>"


def test_too_few_problems_or_impossible_sizes():
    with pytest.raises(UserError, match="fewer than 5000 problems of 2 terms exist"):
        MicroWorld(5000, 9, 9, min_terms=2, taught_terms=2, max_terms=2).load("train")
    with pytest.raises(UserError, match="min_terms <= taught_terms <= max_terms"):
        MicroWorld(min_terms=5, max_terms=4)
    with pytest.raises(UserError, match="must be from 1 to"):
        MicroWorld(n_test=0)
    with pytest.raises(UserError, match="unknown split 'dev'"):
        WORLD.load("dev")


def test_warm_start_learns_and_repeats_itself(tokenizer):
    settings = TaughtSFT(hidden=32, layers=1, heads=2, steps=30, batch_size=16)
    (first, log), (second, again) = (teach_micro(WORLD, tokenizer, settings) for _ in range(2))
    assert log == again
    assert log[-1]["loss"] < 0.9 * log[0]["loss"]
    assert all(a.equal(b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


def test_no_lesson_is_a_problem_of_any_seed_or_size():
    problems = {
        problem.question
        for world in (WORLD, MicroWorld(n_train=900, seed=3), MicroWorld(n_test=400, max_terms=6))
        for split in SPLITS
        for problem in world.load(split)
    }
    taught = {question for question, _ in MicroWorld(n_train=1).traces(3000)}
    assert not problems & taught


def test_a_cut_lesson_asks_for_its_own_traces_answer_and_no_other_lesson_changes():
    whole, lessons = WORLD.traces(400), WORLD.lessons(400, 0.25)
    cut = [pair for pair in zip(whole, lessons, strict=True) if pair[0] != pair[1]]
    assert 60 < len(cut) < 140
    kept = set()
    for (question, trace), (prompt, completion) in cut:
        start, answer = prompt.removeprefix(question + " ").removesuffix(" </think> <answer>"), completion.split()
        assert trace.startswith(start)
        assert start.startswith("<think>")
        assert "</think>" not in start
        assert answer[-2:] == ["</answer>", "<eos>"]
        assert trace.endswith("<answer> " + completion)
        kept.add(len(start.split()) / trace.split().index("</think>"))
    assert min(kept) < 0.1
    assert max(kept) == 1.0
    assert WORLD.lessons(400, 0.0) == whole


@pytest.mark.parametrize("cut", [-0.1, 1.5])
def test_the_share_of_cut_lessons_is_a_share(cut):
    with pytest.raises(UserError, match="a share from 0 to 1"):
        TaughtSFT(cut=cut)
