"""A decoder as ONNX -> text generated token by token, as token numbers.

Decoders with caches of a fixed greatest length (inputs `past...` whose types are those of outputs
`present...`) keep them in the model's memory: `model.bind`. Of others, which read all tokens so
far, a window of fixed length moves along; what a causal model says of a token does not depend on
what is behind it.

python examples/generate.py DECODER.onnx --prompt 1,5,9 --tokens 40
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np

import qcompiler
from qcompiler.artifact.manifest import Value

WINDOW = 128
"""Tokens that a model without caches reads at once."""
Next = Callable[[list[int]], np.ndarray]
"""Tokens so far -> the scores of all words to come next."""


def windowed(path: Path) -> Next:
    """A model of ids[1, WINDOW] alone."""
    model = qcompiler.load(qcompiler.compile(path, input_shapes={_only_input(path): (1, WINDOW)}))

    def scores(tokens: list[int]) -> np.ndarray:
        seen = tokens[-WINDOW:]
        ids = np.zeros((1, WINDOW), np.int64)
        ids[0, : len(seen)] = seen
        return np.asarray(model(ids))[0, len(seen) - 1]

    return scores


def cached(path: Path, pairs: dict[str, str]) -> Next:
    """A model of one token a run, and of its caches; inputs that are neither tell the position."""
    model = qcompiler.load(qcompiler.compile(path))
    (first, second), *more = pairs.items()
    session = model.bind(first, second)
    for past, present in more:
        session = session.bind(past, present)
    done = 0

    def scores(tokens: list[int]) -> np.ndarray:
        nonlocal done
        while done < len(tokens):
            made = session.run({v.name: _fed(v, tokens[done], done) for v in session.inputs})
            done += 1
        found = made[session.outputs[0].name]
        return found.reshape(-1, found.shape[-1])[-1]

    return scores


def _fed(value: Value, token: int, position: int) -> np.ndarray:
    """What an input reads: the token, a mask of the positions so far, or the position."""
    dtype = np.dtype(value.dtype)
    if "mask" in value.name:
        return (np.arange(value.shape[-1]) <= position).astype(dtype).reshape(value.shape)
    is_token = "id" in value.name and "pos" not in value.name
    return np.full(value.shape, token if is_token else position, dtype)


def _only_input(path: Path) -> str:
    names = _names(path)[0]
    if len(names) != 1:
        raise SystemExit(f"{path} takes {', '.join(names)}: neither tokens alone nor caches")
    return names[0]


def _names(path: Path) -> tuple[list[str], list[str]]:
    """The names of a model's inputs and outputs."""
    import onnx

    graph = onnx.load(path, load_external_data=False).graph
    weights = {t.name for t in graph.initializer}
    return [i.name for i in graph.input if i.name not in weights], [o.name for o in graph.output]


def decoder(path: Path) -> Next:
    """A decoder's file -> what comes next."""
    inputs, outputs = _names(path)
    pairs = {i: i.replace("past_key_values", "present").replace("past", "present") for i in inputs}
    pairs = {i: o for i, o in pairs.items() if i != o and o in outputs}
    return cached(path, pairs) if pairs else windowed(path)


def generate(scores: Next, prompt: list[int], count: int, temperature: float = 0.0) -> list[int]:
    """The prompt and `count` tokens more: each the likeliest, or drawn at a temperature."""
    tokens, draw = list(prompt), np.random.default_rng(0)
    for _ in range(count):
        found = scores(tokens).astype(np.float64)
        if temperature:
            found = found / temperature + draw.gumbel(size=found.shape)
        tokens.append(int(found.argmax()))
    return tokens


def main() -> None:
    """Print the tokens."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("decoder", type=Path)
    parser.add_argument("--prompt", default="1", help="token numbers, by commas")
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--temperature", type=float, default=0.0)
    asked = parser.parse_args()
    if not asked.decoder.exists():
        print(f"there is no {asked.decoder}: nothing to generate with")
        return
    prompt = [int(t) for t in asked.prompt.split(",")]
    made = generate(decoder(asked.decoder), prompt, asked.tokens, asked.temperature)
    print(" ".join(map(str, made)))


if __name__ == "__main__":
    main()
