"""Tokenisation and batch order."""

from __future__ import annotations

import json
import string
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tbkin_core.errors import CheckpointError, DataError
from tbkin_core.texts.table import encode_texts
from tbkin_core.texts.tokenizer import (
    SPECIAL_TOKENS,
    build_tokenizer,
    extend_tokenizer,
    load_tokenizer,
    save_tokenizer,
    tokenizer_of,
    words_of,
)
from tbkin_core.training.loop import epoch_order

TEXTS = ["A man rides a brown horse.", "two Dogs on the café's sofa", "a man and a dog, 2 cats"]
WORDS = st.text(string.ascii_lowercase, min_size=1, max_size=8)
SENTENCES = st.lists(WORDS, min_size=1, max_size=6).map(" ".join)


@settings(max_examples=25, deadline=None)
@given(texts=st.lists(SENTENCES, min_size=1, max_size=8), data=st.data())
def test_a_tokenizer_depends_on_the_multiset_of_texts_alone(texts: list[str], data: st.DataObject) -> None:
    shuffled = data.draw(st.permutations(texts))
    assert build_tokenizer(shuffled).to_str() == build_tokenizer(texts).to_str()


@settings(max_examples=25, deadline=None)
@given(texts=st.lists(SENTENCES, min_size=1, max_size=8))
def test_words_of_the_data_are_one_piece_each(texts: list[str]) -> None:
    table = encode_texts(build_tokenizer(texts), texts, 64)
    for row, text in enumerate(texts):
        begin, end = table.offsets[row : row + 2]
        assert list(table.word_ids[begin:end]) == [-1, *range(len(words_of(text))), -1]
    assert not table.unknown.any()
    assert table.cut == 0


@settings(max_examples=40, deadline=None)
@given(word=st.text("abcdefghijklmnopqrstuvwxyz0123456789", min_size=2, max_size=30))
def test_words_never_seen_are_spelled(word: str) -> None:
    tokenizer = build_tokenizer(["x"])
    pieces = tokenizer.encode(word).tokens[1:-1]
    assert "[UNK]" not in pieces
    assert "".join(piece.removeprefix("##") for piece in pieces) == word
    assert all(len(piece.removeprefix("##")) == 1 for piece in pieces)


@settings(max_examples=60, deadline=None)
@given(text=st.text(max_size=40))
def test_nothing_in_the_texts_that_built_it_is_unknown_to_a_tokenizer(text: str) -> None:
    """`words_of` splits as the tokenizer does, for every script."""
    tokenizer = build_tokenizer([text])
    encoding = tokenizer.encode(text)
    assert encoding.ids[0] == tokenizer.token_to_id("[CLS]")
    assert "[UNK]" not in encoding.tokens


def test_accents_case_and_punctuation() -> None:
    assert words_of("The Café's t-shirt, snake_case!") == [
        "the", "cafe", "'", "s", "t", "-", "shirt", ",", "snake", "_", "case", "!",
    ]  # fmt: skip
    tokenizer = build_tokenizer(TEXTS)
    assert tokenizer.encode("CAFÉ").tokens == ["[CLS]", "cafe", "[SEP]"]


def test_the_most_frequent_words_stay_where_the_vocabulary_is_limited() -> None:
    full = build_tokenizer(TEXTS)
    small = build_tokenizer(TEXTS, limit=full.get_vocab_size() - 3)
    assert small.get_vocab_size() == full.get_vocab_size() - 3
    assert small.token_to_id("man") is not None
    assert [small.token_to_id(token) for token in SPECIAL_TOKENS] == list(range(5))


@settings(max_examples=25, deadline=None)
@given(before=st.lists(SENTENCES, min_size=1, max_size=5), after=st.lists(SENTENCES, min_size=1, max_size=5))
def test_extending_keeps_the_ids(before: list[str], after: list[str]) -> None:
    old = build_tokenizer(before)
    new, added = extend_tokenizer(old, after)
    assert new.get_vocab_size() == old.get_vocab_size() + added
    assert old.get_vocab().items() <= new.get_vocab().items()
    for text in [*before, *after]:
        assert len(new.encode(text).tokens) == len(text.split()) + 2
    assert extend_tokenizer(new, after)[1] == 0


def test_extending_stops_at_the_limit() -> None:
    old = build_tokenizer(TEXTS)
    new, added = extend_tokenizer(old, ["zebra zebra giraffe"], limit=old.get_vocab_size() + 1)
    assert added == 1
    assert new.token_to_id("zebra") == old.get_vocab_size()


def test_a_saved_tokenizer_encodes_the_same(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = build_tokenizer(TEXTS)
    save_tokenizer(tokenizer, tmp_path)
    text = "a man rides an unseen zebra"
    assert load_tokenizer(tmp_path).encode(text).ids == tokenizer.encode(text).ids
    assert AutoTokenizer.from_pretrained(tmp_path)(text)["input_ids"] == tokenizer.encode(text).ids


def test_a_vocabulary_file_of_bert_is_read(tmp_path: Path) -> None:
    pieces = [*SPECIAL_TOKENS, "dog", "##s", "a"]
    (tmp_path / "vocab.txt").write_text("\n".join(pieces) + "\n", encoding="utf-8")
    assert load_tokenizer(tmp_path).encode("A dogs").tokens == ["[CLS]", "a", "dog", "##s", "[SEP]"]


@pytest.mark.parametrize("file", ["vocab.txt", "tokenizer.json"])
@pytest.mark.parametrize(
    "settings",
    [
        {"do_lower_case": False},
        {"do_lower_case": True},
        {"do_lower_case": False, "strip_accents": True, "tokenize_chinese_chars": False},
        {"do_lower_case": True, "strip_accents": False, "tokenize_chinese_chars": True},
        {"do_lower_case": True, "strip_accents": None},
        {},
    ],
)
def test_case_and_accents_are_read_as_transformers_reads_them(
    tmp_path: Path, settings: dict[str, bool | None], file: str
) -> None:
    from transformers import BertTokenizerFast

    letters = [*string.ascii_letters, "é", "É", "红", "色"]
    words = ["Is", "is", "there", "a", "Red", "red", "Café", "café", "cafe", "Cafe", "红色", "?"]
    pieces = [*SPECIAL_TOKENS, *letters, *(f"##{letter}" for letter in letters), *words]
    (tmp_path / "vocab.txt").write_text("\n".join(pieces) + "\n", encoding="utf-8")
    if file == "tokenizer.json":
        tokenizer_of(pieces).save(str(tmp_path / file))
    content = json.dumps({**settings, "tokenizer_class": "BertTokenizer"})
    (tmp_path / "tokenizer_config.json").write_text(content)
    theirs, ours = BertTokenizerFast.from_pretrained(tmp_path), load_tokenizer(tmp_path)
    text = "Is there a Red Café 红色 CAFÉ?"
    encoding = ours.encode(text)
    assert encoding.ids == theirs(text)["input_ids"]
    assert ("Red" in encoding.tokens) is (settings.get("do_lower_case") is False)
    # The words of a figure are those that the pieces belong to.
    assert len(words_of(text, ours)) == max(number for number in encoding.word_ids if number is not None) + 1
    # A checkpoint that began from it reads as it.
    (tmp_path / "saved").mkdir()
    save_tokenizer(ours, tmp_path / "saved")
    assert load_tokenizer(tmp_path / "saved").encode(text).ids == encoding.ids


@pytest.mark.parametrize("content", [None, "[PAD]\n[UNK]\ndog\n"])
def test_a_directory_without_a_bert_tokenizer_is_refused(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "vocab.txt").write_text(content, encoding="utf-8")
    with pytest.raises(CheckpointError):
        load_tokenizer(tmp_path)


def test_a_broken_tokenizer_is_refused(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text('{"version": "1.0", "mod', encoding="utf-8")
    with pytest.raises(CheckpointError, match="cannot be loaded"):
        load_tokenizer(tmp_path)
    with pytest.raises(CheckpointError, match=r"\[MASK\]"):
        tokenizer_of(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "dog"])


# ---- token arrays -------------------------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(texts=st.lists(SENTENCES, min_size=1, max_size=6), limit=st.integers(3, 9), data=st.data())
def test_encoding_cuts_and_pads(texts: list[str], limit: int, data: st.DataObject) -> None:
    tokenizer = build_tokenizer(texts)
    table = encode_texts(tokenizer, texts, limit)
    whole = [len(text.split()) + 2 for text in texts]
    assert len(table) == len(texts)
    assert list(table.lengths) == [min(length, limit) for length in whole]
    assert table.cut == sum(length > limit for length in whole)
    rows = np.array(data.draw(st.lists(st.integers(0, len(texts) - 1), min_size=1, max_size=5)))
    input_ids, mask, word_ids = table.padded(rows)
    assert input_ids.shape == (len(rows), table.lengths[rows].max())
    for place, row in enumerate(rows):
        count = table.lengths[row]
        expected = tokenizer.encode(texts[row]).ids
        assert list(input_ids[place, : count - 1]) == expected[: count - 1]
        assert input_ids[place, count - 1] == tokenizer.token_to_id("[SEP]")
        assert mask[place].sum() == count
        assert mask[place, :count].all()
        assert (word_ids[place, count - 1 :] == -1).all()
        assert list(word_ids[place, 1 : count - 1]) == list(range(count - 2))


def test_words_given_split_keep_their_numbers() -> None:
    """A graph's token indices must name the same words after tokenisation, whatever a token holds."""
    texts = [("a", "t-shirt", "unseenword"), ("two", "words")]
    table = encode_texts(build_tokenizer(["a t shirt - two words"]), texts, 32)
    first = table.word_ids[: table.offsets[1]]
    assert list(first) == [-1, 0, 1, 1, 1, *[2] * len("unseenword"), -1]
    assert list(table.word_ids[table.offsets[1] :]) == [-1, 0, 1, -1]


def test_texts_of_unknown_characters_are_told_apart() -> None:
    table = encode_texts(build_tokenizer(["a dog"]), ["a dog", "犬", "", "a 犬"], 8)
    assert list(table.unknown) == [False, True, True, False]


def test_no_texts_and_no_room() -> None:
    assert len(encode_texts(build_tokenizer(["a"]), [], 8)) == 0
    with pytest.raises(DataError, match="at least 3"):
        encode_texts(build_tokenizer(["a"]), ["a"], 2)


# ---- order --------------------------------------------------------------------------------------


@settings(max_examples=100, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 40), max_size=120),
    batch_size=st.integers(1, 50),
    bucket=st.integers(1, 5),
    seed=st.integers(0, 100),
    epoch=st.integers(0, 100),
)
def test_an_epoch_has_every_row_once(
    lengths: list[int], batch_size: int, bucket: int, seed: int, epoch: int
) -> None:
    batches = epoch_order(np.array(lengths), batch_size, seed, epoch, bucket)
    assert sorted(int(row) for batch in batches for row in batch) == list(range(len(lengths)))
    assert len(batches) == -(-len(lengths) // batch_size)
    assert sum(len(batch) != batch_size for batch in batches) <= 1
    again = epoch_order(np.array(lengths), batch_size, seed, epoch, bucket)
    assert all(np.array_equal(*pair) for pair in zip(batches, again, strict=True))


def test_epochs_differ_and_buckets_save_padding() -> None:
    lengths = np.random.default_rng(0).integers(3, 40, 2000)

    def padding(bucket: int) -> int:
        return sum(
            int((lengths[batch].max() - lengths[batch]).sum())
            for batch in epoch_order(lengths, 16, 0, 0, bucket)
        )

    assert padding(32) < padding(1) / 4
    orders = {
        np.concatenate(epoch_order(lengths, 16, seed, epoch)).tobytes()
        for seed in range(3)
        for epoch in range(3)
    }
    assert len(orders) == 9


def test_words_never_seen_leave_a_text_unknown() -> None:
    tokenizer = build_tokenizer(["what color is the dog", "is it x?"])
    texts = ["zzz qqq?", "what zzz", "x", "???"]
    assert list(encode_texts(tokenizer, texts, 16).unknown) == [True, False, False, True]
