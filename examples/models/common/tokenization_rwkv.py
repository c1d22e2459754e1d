"""The tokenizer of RWKV's world vocabularies: greedy, the longest token of bytes first, by a trie."""

from __future__ import annotations

import ast
import shutil
from pathlib import Path

from transformers import PreTrainedTokenizer

END = "<|endoftext|>"  # id 0, which no line of a vocabulary has


def read_vocabulary(path: str | Path) -> dict[bytes, int]:
    """Read lines of `id literal length`, such as `33 ' ' 1` or `300 b'\\xe4\\xb8' 2`.

    Raises:
        ValueError: a line that is not like that, or an id or a token that came before; it is named.
    """
    tokens: dict[bytes, int] = {}
    with open(path, encoding="utf-8", newline="\n") as lines:
        for number, line in enumerate(lines, 1):
            try:
                index, rest = line.rstrip("\n").split(" ", 1)
                literal, length = rest.rsplit(" ", 1)
                value = ast.literal_eval(literal.strip())
                token = value.encode() if isinstance(value, str) else value
                valid = isinstance(token, bytes) and token and len(token) == int(length)
                if not valid or int(index) < 1 or token in tokens:
                    raise ValueError
            except (ValueError, SyntaxError, TypeError):
                raise ValueError(
                    f"{path}, line {number}: expected a new 'id literal length', got {line!r}"
                ) from None
            tokens[token] = int(index)
    if len(set(tokens.values())) < len(tokens):
        raise ValueError(f"{path}: an id stands for two tokens")
    return tokens


class RwkvTokenizer(PreTrainedTokenizer):
    """Text to ids and back; a token's name is its bytes, each as the character of that number.

    Args:
        vocab_file: the world vocabulary, `rwkv_vocab_v20230424.txt` for the official models.
    """

    vocab_files_names = {"vocab_file": "rwkv_vocab.txt"}  # noqa: RUF012
    model_input_names = ["input_ids", "attention_mask"]  # noqa: RUF012

    def __init__(self, vocab_file: str, **others) -> None:
        self.vocab_file = vocab_file
        self._ids = read_vocabulary(vocab_file)
        self._tokens = {index: token.decode("latin-1") for token, index in self._ids.items()}
        self._tokens[0] = END
        self._trie: dict = {}
        for token in self._ids:
            node = self._trie
            for byte in token:
                node = node.setdefault(byte, {})
            node[-1] = token
        defaults = {"bos_token": END, "eos_token": END, "pad_token": END, "padding_side": "left"}
        super().__init__(**{**defaults, **others})

    @property
    def vocab_size(self) -> int:
        """One more than the largest id."""
        return max(self._tokens) + 1

    def get_vocab(self) -> dict[str, int]:
        return {**{name: index for index, name in self._tokens.items()}, **self.added_tokens_encoder}

    def _tokenize(self, text: str, **_) -> list[str]:
        data, position, names = text.encode(), 0, []
        while position < len(data):
            token = self._longest(data, position)
            names.append(token.decode("latin-1"))
            position += len(token)
        return names

    def _longest(self, data: bytes, position: int) -> bytes:
        node, best = self._trie, None
        for byte in memoryview(data)[position:]:
            node = node.get(byte)
            if node is None:
                break
            best = node.get(-1, best)
        if best is None:
            raise ValueError(f"the vocabulary has no token for byte {data[position]:#04x}")
        return best

    def _convert_token_to_id(self, token: str) -> int:
        return 0 if token == END else self._ids[token.encode("latin-1")]

    def _convert_id_to_token(self, index: int) -> str:
        return self._tokens.get(index, "")

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        """Join the bytes; what is not UTF-8 becomes U+FFFD."""
        parts = (token.encode() if token == END else token.encode("latin-1") for token in tokens)
        return b"".join(parts).decode("utf-8", errors="replace")

    def save_vocabulary(self, save_directory: str, filename_prefix: str | None = None) -> tuple[str]:
        """Copy the vocabulary's file."""
        name = self.vocab_files_names["vocab_file"]
        target = Path(save_directory) / (f"{filename_prefix}-{name}" if filename_prefix else name)
        if target.resolve() != Path(self.vocab_file).resolve():
            shutil.copyfile(self.vocab_file, target)
        return (str(target),)


RwkvTokenizer.register_for_auto_class("AutoTokenizer")
