"""Registers the ops of a module that runs in another process, for another kind of processor.

Copied into the variant that `emulated.py` puts together, where `_ops` imports it in the module's place.
"""

from __future__ import annotations

import atexit
import json
import struct
import subprocess
import threading
from pathlib import Path

import numpy
import torch

from ._ops import add_op_namespace_prefix

# By Torch's numbers for them.
DTYPES = {
    0: torch.uint8,
    1: torch.int8,
    2: torch.int16,
    3: torch.int32,
    4: torch.int64,
    5: torch.float16,
    6: torch.float32,
    7: torch.float64,
    9: torch.complex64,
    11: torch.bool,
    15: torch.bfloat16,
    24: torch.float8_e4m3fn,
}
NUMBERS = {dtype: number for number, dtype in DTYPES.items()}


class Process:
    """The other side of the pipes; `program/main.cpp` has the words that pass through them."""

    def __init__(self, command: list[str]) -> None:
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self._lock = threading.Lock()  # autograd calls from threads of its own
        atexit.register(self._process.kill)
        self.schemas = [self._text() for _ in range(self._number())]

    def call(self, schema: torch.FunctionSchema, arguments: tuple) -> tuple:
        """What the op returns; a RuntimeError with the message of what it threw."""
        kinds, parts, changed = self._encode(schema, arguments)
        results = "".join({"Tensor": "t", "str": "s", "bool": "b"}[str(r.type)] for r in schema.returns)
        name = schema.name.partition("::")[2]
        threads = struct.pack("<q", torch.get_num_threads())
        request = [threads, *map(_packed_text, (name, results, kinds)), *parts]
        with self._lock:
            self._process.stdin.write(b"".join(request))
            self._process.stdin.flush()
            if message := self._text():
                raise RuntimeError(message)
            values = [{"t": self._tensor, "s": self._text, "b": self._flag}[kind]() for kind in results]
            for tensor in changed:
                self._fill(tensor)
        return tuple(values)

    @staticmethod
    def _encode(
        schema: torch.FunctionSchema, arguments: tuple
    ) -> tuple[str, list[bytes], list[torch.Tensor]]:
        kinds, parts, changed = "", [], []
        for argument, value in zip(schema.arguments, arguments, strict=True):
            if value is None:
                kinds += "n"
            elif not isinstance(value, torch.Tensor):
                kinds += "i"
                parts.append(struct.pack("<q", value))
            else:
                optional = str(argument.type).startswith("Optional")
                writes = argument.alias_info is not None and argument.alias_info.is_write
                kinds += "m" if writes else "o" if optional else "t"
                parts.append(_packed_tensor(value))
                changed += [value] if writes else []
        return kinds, parts, changed

    def _bytes(self, count: int) -> bytes:
        data = self._process.stdout.read(count)
        if len(data) != count:
            raise RuntimeError(f"the program died with status {self._process.wait()}")
        return data

    def _number(self) -> int:
        return struct.unpack("<q", self._bytes(8))[0]

    def _flag(self) -> bool:
        return bool(self._number())

    def _text(self) -> str:
        return self._bytes(self._number()).decode()

    def _numbers(self) -> list[int]:
        return [self._number() for _ in range(self._number())]

    def _tensor(self) -> torch.Tensor:
        dtype = DTYPES[self._number()]
        tensor = torch.empty_strided(self._numbers(), self._numbers(), dtype=dtype)
        self._fill(tensor)
        return tensor

    def _fill(self, tensor: torch.Tensor) -> None:
        memory = _memory(tensor)
        memory[:] = numpy.frombuffer(self._bytes(memory.size), dtype=numpy.uint8)


def _memory(tensor: torch.Tensor) -> numpy.ndarray:
    """All bytes from the first element to the last, with what lies between them; writes are not noticed."""
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    elements = tensor.detach().as_strided((last + 1 if tensor.numel() else 0,), (1,))
    return elements.view(torch.uint8).numpy()


def _packed_text(text: str) -> bytes:
    return struct.pack("<q", len(text)) + text.encode()


def _packed_tensor(tensor: torch.Tensor) -> bytes:
    numbers = [NUMBERS[tensor.dtype]]
    for values in (tensor.shape, tensor.stride()):
        numbers += [len(values), *values]
    return struct.pack(f"<{len(numbers)}q", *numbers) + _memory(tensor).tobytes()


def _register(process: Process, text: str) -> None:
    name = add_op_namespace_prefix(text.partition("(")[0])
    torch.library.define(name, text[text.index("(") :])
    schema = torch._C.parse_schema(f"{name}{text[text.index('(') :]}")

    def run(*arguments):
        values = process.call(schema, arguments)
        return values[0] if len(values) == 1 else values

    torch.library.impl(name, "CPU" if "Tensor" in text.partition("->")[0] else "CompositeExplicitAutograd")(
        run
    )


_process = Process(json.loads(Path(__file__).with_name("command.json").read_text()))
for _schema in _process.schemas:
    _register(_process, _schema)
