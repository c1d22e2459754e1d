"""The tokenizer: greedy over bytes, without loss, padded on the left."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rwkv.rwkv_tokenizer import TRIE_TOKENIZER
from transformers import AutoTokenizer

from examples.models.rwkv7.tokenization_rwkv import RwkvTokenizer, read_vocabulary
from tests.models.checkpoints import write_vocabulary


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> RwkvTokenizer:
    return RwkvTokenizer(str(write_vocabulary(tmp_path_factory.mktemp("world") / "vocabulary.txt")))


def test_the_longest_token_wins(tokenizer: RwkvTokenizer) -> None:
    assert tokenizer.tokenize("them the then") == ["them", " the", " the", "n"]
    assert tokenizer("ü中").input_ids == [261, 262]


@given(text=st.text(max_size=40))
def test_text_comes_back(tokenizer: RwkvTokenizer, text: str) -> None:
    ids = tokenizer(text).input_ids
    assert tokenizer.decode(ids, clean_up_tokenization_spaces=False) == text


@given(text=st.text(max_size=40))
def test_ids_are_those_of_the_package_rwkv(tokenizer: RwkvTokenizer, text: str) -> None:
    official = TRIE_TOKENIZER(tokenizer.vocab_file)
    assert tokenizer(text).input_ids == (official.encode(text) if text else [])


def test_a_batch_is_padded_on_the_left(tokenizer: RwkvTokenizer) -> None:
    batch = tokenizer(["the", "abc"], padding=True)
    assert batch.input_ids[0] == [0, 0, tokenizer.get_vocab()["the"]]
    assert batch.attention_mask[0] == [0, 0, 1]
    assert tokenizer.decode(batch.input_ids[0], skip_special_tokens=True) == "the"


def test_it_comes_with_the_repository_and_is_saved(repository: Path, tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(repository, trust_remote_code=True)
    tokenizer.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path, trust_remote_code=True)
    assert again("the ü\r\n").input_ids == tokenizer("the ü\r\n").input_ids
    assert again.padding_side == "left"


@pytest.mark.parametrize(
    "line", ["1 'a' 2", "x 'a' 1", "1 'a'", "0 'a' 1", "1 exit() 1", "1 [1] 1", "1 '' 0"]
)
def test_a_bad_line_is_named(line: str, tmp_path: Path) -> None:
    (tmp_path / "vocabulary.txt").write_text(f"9 'z' 1\n{line}\n")
    with pytest.raises(ValueError, match="line 2"):
        read_vocabulary(tmp_path / "vocabulary.txt")
