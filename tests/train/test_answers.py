"""Questions and answers: what is learned of them, and how many are right."""

import math
import re
from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from residuum.audit.charts import training_chart
from residuum.errors import InputError
from residuum.model import ModelConfig, Sampling, Transformer, generate
from residuum.train import RunFolder, load_recipe, train
from residuum.train.answers import QuestionBatches, Questions, in_answers, mark_token
from residuum.train.recipe import DataConfig, as_dict, recipe_from
from residuum.train.text import read_corpus
from residuum.train.tokenizer import ByteTokenizer, CharTokenizer, tokenize

TOKENIZER = CharTokenizer("+0123456789=ab")
DOCUMENTS = ["1+2=3", "10+2=12", "a", "b=", "a=b=b"]


def test_an_answer_begins_after_the_first_mark_and_ends_with_the_separator() -> None:
    tokens = tokenize(TOKENIZER, DOCUMENTS)
    inside = in_answers(tokens, mark_token(TOKENIZER, "="), TOKENIZER.separator)
    shown = "".join(TOKENIZER.decode([t]) if told else "." for t, told in zip(tokens.tolist(), inside, strict=True))
    assert shown == "....3\n.....12\n....\n..b=b\n"


def question_batches(documents: list[str], context: int, rows: int = 4, seed: int = 0) -> QuestionBatches:
    return QuestionBatches(tokenize(TOKENIZER, documents), TOKENIZER, "=", context, rows, seed)


def test_a_row_is_whole_documents_and_their_answers_are_learned() -> None:
    documents = ["1+2=3", "10+2=12", "3+3=6"]
    batches, neighbours = question_batches(documents, 20), set()
    for step in range(50):
        x, y = batches.at(step)
        assert x.shape == y.shape == (4, 20)
        for row, targets in zip(x, y, strict=True):
            assert row[0] == TOKENIZER.separator
            *whole, cut = TOKENIZER.decode(row[1:].tolist()).split("\n")
            assert set(whole) <= set(documents) and any(document.startswith(cut) for document in documents)
            neighbours |= set(pairwise(whole))
            inside = in_answers(row.numpy(), mark_token(TOKENIZER, "="), TOKENIZER.separator)
            assert torch.equal(targets[:-1], torch.where(torch.from_numpy(inside), row, -100)[1:])
    assert len(neighbours) == 9  # every document follows every other, and itself


def test_the_batch_of_a_step_is_a_pure_function_of_it() -> None:
    first, again = (question_batches(["1+2=3", "10+2=12"], 9, seed=3) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first.at(7, 1, 2), again.at(7, 1, 2), strict=True))
    assert not torch.equal(first.at(7)[0], first.at(8)[0])


def test_every_row_has_something_to_learn() -> None:
    """Documents whose answer begins too late are left out, and so are those that have none."""
    batches = question_batches(["a" * 50 + "=1", "b=2", "a"], 5)
    for step in range(20):
        x, y = batches.at(step)
        assert ((y != -100).sum(1) >= 1).all() and TOKENIZER.encode("a")[0] not in x
    with pytest.raises(InputError, match=r"within model\.context = 5 tokens"):
        question_batches(["a" * 50 + "=1"], 5)


def test_a_mark_is_one_token_of_the_text() -> None:
    assert mark_token(ByteTokenizer(), "=") == ord("=")
    for tokenizer, mark, said in (
        (TOKENIZER, "?", "is not in the text"),
        (TOKENIZER, "==", "is 2 tokens"),
        (ByteTokenizer(), "→", "is 3 tokens"),
    ):
        with pytest.raises(InputError, match=re.escape(f"data.answer = '{mark}' {said}")):
            mark_token(tokenizer, mark)
    with pytest.raises(InputError, match="ends no question"):
        in_answers(tokenize(TOKENIZER, ["a", "b"]), mark_token(TOKENIZER, "="), TOKENIZER.separator)
    with pytest.raises(InputError, match=r"data\.answer is empty"):
        DataConfig(answer="")


def answer_nats(model: Transformer, tokens: list[int], document: str) -> tuple[float, int]:
    """−log p of a document's answer and its end, one token at a time, and how many bytes that is."""
    first = 1 + document.index("=") + 1
    with torch.no_grad():
        chances = [model(torch.tensor([tokens[:place]]))[0, -1].log_softmax(-1) for place in range(first, len(tokens))]
    nats = [-chance[token].item() for chance, token in zip(chances, tokens[first:], strict=True)]
    return sum(nats), len(nats)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_exact_match_is_what_greedy_generation_answers(seed: int) -> None:
    """A model that writes 'b' until it feels like the end is right about exactly what it would generate."""
    torch.manual_seed(seed)
    model = Transformer(ModelConfig(vocab_size=15, context=9, d_model=8, n_layers=1, n_heads=2, init_std=1.0)).eval()
    end = TOKENIZER.separator
    questions = ["1+2=", "10+2=", "a=", "ab=", "7="]
    documents = []
    for question in questions:
        prompt = [end, *TOKENIZER.encode(question).tolist()]
        answer = []
        for token in generate(model, prompt, 9 - len(prompt), Sampling(0)):
            if token == end:
                break
            answer.append(token)
        documents.append(question + TOKENIZER.decode(answer))
    fits = [d for d in documents if len(d) + 2 <= 10]
    ended = [d for d in fits if end in list(generate(model, [end, *TOKENIZER.encode(d).tolist()], 1, Sampling(0)))]
    bits, share, by_kind = Questions(documents, TOKENIZER, "=", 9).ask(model, 2)
    assert share == pytest.approx(len(ended) / len(fits))
    kinds = [re.sub(r"[0-9]+", "n", d.partition("=")[0]) for d in fits]
    asked, right = Counter(kinds), Counter(kind for kind, d in zip(kinds, fits, strict=True) if d in ended)
    assert by_kind == ({kind: right[kind] / asked[kind] for kind in asked} if len(asked) > 1 else {})
    nats = [answer_nats(model, [end, *TOKENIZER.encode(d).tolist(), end], d) for d in fits]
    assert bits == pytest.approx(sum(n for n, _ in nats) / sum(size for _, size in nats) / math.log(2))
    wrong = [d[:-1] + ("0" if d[-1] != "0" else "1") for d in ended if not d.endswith("=")]
    if wrong:
        assert Questions(wrong, TOKENIZER, "=", 9).ask(model, 2).exact_match == 0
    with pytest.raises(InputError, match=r"no held-out document has it and fits into model\.context = 9"):
        Questions(["a", "1+2=" + "3" * 20], TOKENIZER, "=", 9)


def test_arithmetic_is_right_and_its_split_is_by_problem() -> None:
    corpus = read_corpus(DataConfig(source="arithmetic"))
    for problem in corpus.train + corpus.held_out:
        question, answer = problem.split("=")
        assert eval(question) == int(answer)
    assert len(corpus.train) + len(corpus.held_out) == 10_000 + 2 * 900 - 81
    mirrored = {re.sub(r"^(\d+)(.)(\d+)", r"\3\2\1", problem) for problem in corpus.train}
    assert not (set(corpus.train) | mirrored) & set(corpus.held_out)
    assert {mark for problem in corpus.held_out for mark in "+*" if mark in problem} == {"+", "*"}


def test_a_run_that_asks_questions(tmp_path: Path) -> None:
    content = as_dict(load_recipe("bitnet-arithmetic"))
    content["run"] |= {"steps": 4, "eval_every": 2, "checkpoint_every": 4, "eval_tokens": 8192, "sample_tokens": 0}
    content["model"] |= {"d_model": 16, "n_layers": 1, "n_heads": 2}
    folder = RunFolder.create(tmp_path / "run")
    train(folder, recipe_from(content, "test"))
    lines = [line for line in folder.metrics() if "exact_match" in line]
    assert [line["step"] for line in lines] == [2, 4]
    assert all(0 <= line["exact_match"] < 0.5 for line in lines)
    assert np.isfinite(lines[-1]["train_bits_per_byte"])
    assert not any("bigram_bits_per_byte" in line for line in folder.metrics())
    model, right = folder.model(), 0.0
    for document in read_corpus(DataConfig(source="arithmetic")).held_out:  # each alone, all of it in one window
        tokens = [folder.tokenizer.separator, *folder.tokenizer.encode(document), folder.tokenizer.separator]
        scores = model(torch.tensor([tokens[:-1]]))[0].log_softmax(-1)
        begins = document.index("=") + 1
        right -= sum(scores[i, tokens[i + 1]].item() for i in range(begins, len(tokens) - 1))
    assert lines[-1]["bits_per_byte"] == pytest.approx(right / np.log(2) / answer_bytes(), rel=0.05)
    chart = training_chart(folder.metrics())
    assert chart is not None
    kinds = lines[-1]["exact_match_by_kind"]
    assert sorted(kinds) == ["n*n", "n+n"]
    shown = ", ".join(f"{kind} {share:.1%}" for kind, share in kinds.items())
    assert f"of held-out questions ({shown}) are answered right after 4 steps" in str(chart)


def answer_bytes() -> int:
    """Of all held-out answers, with the separator behind each."""
    return sum(len(problem.split("=")[1]) + 1 for problem in read_corpus(DataConfig(source="arithmetic")).held_out)
