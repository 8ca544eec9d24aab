"""Text, tokens and batches."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import tokenizers
import torch
from hypothesis import given
from hypothesis import strategies as st

from residuum.errors import InputError
from residuum.train.batches import Batches
from residuum.train.evaluate import bigram_bits_per_byte, bits_per_byte
from residuum.train.recipe import DataConfig
from residuum.train.text import read_corpus
from residuum.train.tokenizer import (
    BPETokenizer,
    ByteTokenizer,
    CharTokenizer,
    byte_level_alphabet,
    load_tokenizer,
    make_tokenizer,
    tokenize,
)


def test_a_folder_splits_by_document_and_the_split_is_stable(text_folder: Path, tmp_path: Path) -> None:
    config = DataConfig(source=str(text_folder), held_out=0.3)
    corpus = read_corpus(config)
    texts = {path.read_text() for path in text_folder.iterdir()}
    assert set(corpus.train) | set(corpus.held_out) == texts
    assert 4 <= len(corpus.held_out) <= 20
    # With half of the documents gone, those that stay are on the side where they were.
    for path in sorted(text_folder.iterdir())[::2]:
        (tmp_path / path.name).write_text(path.read_text())
    half = read_corpus(dataclasses.replace(config, source=str(tmp_path)))
    assert set(half.held_out) <= set(corpus.held_out)
    assert half.fingerprint != corpus.fingerprint
    assert read_corpus(config).fingerprint == corpus.fingerprint


def test_a_file_splits_by_paragraph_or_line(tmp_path: Path) -> None:
    play, names = tmp_path / "play.txt", tmp_path / "names.txt"
    play.write_text("\n\n".join(f"speech {i}\nof two lines" for i in range(60)))
    names.write_text("\n".join(f"name{i}" for i in range(200)))
    assert all("\n" in text for text in read_corpus(DataConfig(source=str(play), held_out=0.2)).train)
    assert all("\n" not in text for text in read_corpus(DataConfig(source=str(names))).train)


def test_binary_files_are_skipped_and_counted(text_folder: Path, tmp_path: Path) -> None:
    for path in text_folder.iterdir():
        (tmp_path / path.name).write_text(path.read_text())
    (tmp_path / "picture.png").write_bytes(b"\x89PNG\xff\xfe")
    assert read_corpus(DataConfig(source=str(tmp_path), held_out=0.3)).skipped == 1


def test_the_standard_library_is_there_for_everyone() -> None:
    corpus = read_corpus(DataConfig(max_bytes=300_000))
    assert 200_000 < corpus.n_bytes <= 300_000
    held = sum(len(document.encode()) for document in corpus.held_out)
    assert 0.03 < held / corpus.n_bytes < 0.06  # as in the whole, where it is 0.05
    names = read_corpus(DataConfig(source="stdlib-names"))
    assert len(names.train) > 2000
    assert "append" in names.train + names.held_out


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"source": "nowhere.txt"}, "data.source = 'nowhere.txt' does not exist"),
        ({"source": "empty.txt"}, "holds no text"),
        ({"source": "empty"}, "holds no text"),
        ({"source": "latin.txt"}, "is not UTF-8 text"),
        ({"source": "one.txt", "documents": "file"}, "give more text"),
        (
            {"source": "one.txt", "max_bytes": 1},
            "data.max_bytes = 1 leaves 1 for documents to train on, and the smallest",
        ),
    ],
)
def test_bad_sources(values: dict, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("empty.txt").touch()
    Path("empty").mkdir()
    Path("latin.txt").write_bytes("né\n".encode("latin-1"))
    Path("one.txt").write_text("a few words\n")
    with pytest.raises(InputError, match=message) as error:
        read_corpus(DataConfig(**values))
    assert "\n" not in str(error.value)


DOCUMENTS = ["<|separator|> is text", "def f(x):\n    return x\n", "naïve 𝕏 → ∞\n", "a" * 40]


@pytest.mark.parametrize("kind", ["byte", "char", "bpe"])
def test_tokenizers_round_trip(kind: str, tmp_path: Path) -> None:
    tokenizer = make_tokenizer(DataConfig(tokenizer=kind, vocab_size=270), DOCUMENTS)
    path = tmp_path / "tokenizer.json"
    path.write_text(tokenizer.to_json())
    again = load_tokenizer(path)
    for document in DOCUMENTS:
        tokens = tokenizer.encode(document)
        assert tokens.max() < tokenizer.vocab_size
        assert tokenizer.decode(tokens.tolist()) == document
        assert np.array_equal(again.encode(document), tokens)
        assert tokenizer.token_bytes[tokens].sum() == len(document.encode())
    row = tokenize(tokenizer, DOCUMENTS)
    assert (row == tokenizer.separator).sum() == len(DOCUMENTS)
    assert tokenizer.token_bytes[row].sum() == sum(len(d.encode()) + 1 for d in DOCUMENTS)
    assert tokenizer.decode(row.tolist()) == "".join(d + "\n" for d in DOCUMENTS)


@given(st.text())
def test_byte_tokens_are_utf8(text: str) -> None:
    tokens = ByteTokenizer().encode(text)
    assert tokens.tolist() == list(text.encode())
    assert ByteTokenizer().decode(tokens.tolist()) == text


@given(st.text())
def test_bpe_reads_what_it_never_saw(text: str) -> None:
    tokenizer = BPETokenizer.learn(DOCUMENTS, 262)
    assert tokenizer.decode(tokenizer.encode(text).tolist()) == text


def test_the_byte_level_alphabet_is_that_of_the_tokenizers_package() -> None:
    byte_of, theirs = byte_level_alphabet(), tokenizers.pre_tokenizers.ByteLevel
    assert set(byte_of) == set(theirs.alphabet())
    assert sorted(byte_of.values()) == list(range(256))
    text = "".join(map(chr, [*range(0x800), 0x800, 0xFFFD, 0x10000, 0x10FFFF]))
    (spelled, _), *more = theirs(add_prefix_space=False, use_regex=False).pre_tokenize_str(text)
    assert not more
    assert bytes(byte_of[character] for character in spelled) == text.encode()


def test_char_names_the_character_it_does_not_know() -> None:
    with pytest.raises(InputError, match="'z' is not in the text"):
        CharTokenizer("abc").encode("abz")


@pytest.mark.parametrize("content", ["", "{}", '{"type": "bpe", "tokenizer": {}}', "[1]"])
def test_a_damaged_tokenizer_is_named(content: str, tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text(content)
    with pytest.raises(InputError, match=r"tokenizer\.json is damaged"):
        load_tokenizer(path)


def test_a_batch_is_a_function_of_seed_step_pass_and_rank() -> None:
    tokens = np.arange(1000, dtype=np.int32)
    batches = Batches(tokens, 7, 5, seed=3)
    x, y = batches.at(11, 1, 2)
    assert torch.equal(y, x + 1)  # targets are the tokens one later
    assert torch.equal(Batches(tokens, 7, 5, seed=3).at(11, 1, 2)[0], x)
    for other in ((12, 1, 2), (11, 0, 2), (11, 1, 0)):
        assert not torch.equal(batches.at(*other)[0], x)
    assert not torch.equal(Batches(tokens, 7, 5, seed=4).at(11, 1, 2)[0], x)


def test_every_window_can_be_drawn() -> None:
    tokens = np.arange(9, dtype=np.int32)
    batches = Batches(tokens, 7, 50, seed=0)
    assert {int(row[0]) for row in batches.at(0)[0]} == {0, 1}


def test_a_context_longer_than_the_text() -> None:
    with pytest.raises(InputError, match=r"model\.context = 9 is longer than the text, which has 9 tokens"):
        Batches(np.arange(9, dtype=np.int32), 9, 1, seed=0)


def test_bits_per_byte_is_the_mean_over_bytes(tiny) -> None:
    tokenizer = CharTokenizer("abcdefghijklmnopqrstuvwxyzäöüß")  # 31 tokens with the separator
    tokens = tokenize(tokenizer, ["wörter mit umlauten".replace(" ", ""), "größe", "ähnlich"])
    tiny.train()
    measured = bits_per_byte(tiny, tokens, tokenizer, most_tokens=24, batch_size=1)
    assert tiny.training
    tiny.eval()
    nats, size = 0.0, 0
    for start in (0, 12):
        scores = tiny(torch.from_numpy(tokens[None, start : start + 12].astype(np.int64)))[0].detach()
        for place in range(12):
            target = tokens[start + place + 1]
            nats -= float(scores[place].log_softmax(-1)[target])
            size += int(tokenizer.token_bytes[target])
    assert measured == pytest.approx(nats / np.log(2) / size, rel=1e-5)


def test_bigram_baseline_by_hand() -> None:
    # Pairs of "ab": start→a, a→b, b→end, each seen once; with one added to each of the 257 followers, 2 of 258.
    assert bigram_bits_per_byte(["ab"], ["ab"]) == pytest.approx(-np.log2(2 / 258))
    assert bigram_bits_per_byte(["ab"], ["c"]) == pytest.approx(-(np.log2(1 / 258) + np.log2(1 / 257)) / 2)


def test_real_text(shared_data: Path) -> None:
    names = read_corpus(DataConfig(source=str(shared_data / "names.txt")))
    assert len(names.train) + len(names.held_out) > 30_000
    play = read_corpus(DataConfig(source=str(shared_data / "tinyshakespeare.txt")))
    assert len(play.train) > 5000
    assert not set(play.train) & set(play.held_out)
