"""A decoder as ONNX -> text generated token by token, as token numbers.

Decoders with caches (inputs `past...` and outputs `present...`), that grow or are of a fixed
greatest length, keep them in the model's memory, where each token adds its rows: `model.bind`. Of
others, which read all tokens so far, a window of fixed length moves along; what a causal model says
of a token does not depend on what is behind it.

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
"""Tokens that a model without caches reads at once, and the most in caches that grow."""
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
    model = qcompiler.load(qcompiler.compile(path, dims=_dims(path, pairs)))
    symbols = [s.name for s in model.manifest.symbols]
    (first, second), *more = pairs.items()
    session = model.bind(first, second)
    for past, present in more:
        session = session.bind(past, present)
    done = 0

    def scores(tokens: list[int]) -> np.ndarray:
        nonlocal done
        while done < len(tokens):
            shapes = {v.name: v.at(dict.fromkeys(symbols, done)) for v in session.inputs}
            feed = {v.name: _fed(v, shapes[v.name], tokens[done], done) for v in session.inputs}
            made = session.run(feed)
            done += 1
        found = made[session.outputs[0].name]
        return found.reshape(-1, found.shape[-1])[-1]

    return scores


def _dims(path: Path, pairs: dict[str, str]) -> dict[str, int | str]:
    """What the sizes are that a decoder leaves open: any length of caches that grow, else 1."""
    import onnx

    graph = onnx.load(path, load_external_data=False).graph
    shapes = {
        v.name: [d.dim_param for d in v.type.tensor_type.shape.dim]
        for v in (*graph.input, *graph.output)
    }
    known = {d for v in graph.input for d in shapes[v.name] if d}
    both = [zip(shapes[i], shapes[o], strict=True) for i, o in pairs.items()]
    growing = {past for pair in both for past, present in pair if past != present}
    return {d: f"0..{WINDOW - 1}" if d in growing else 1 for d in known}


def _fed(value: Value, shape: tuple[int, ...], token: int, position: int) -> np.ndarray:
    """What an input reads: the token, a mask of the positions so far, or the position."""
    dtype = np.dtype(value.dtype)
    if "mask" in value.name:
        return (np.arange(shape[-1]) <= position).astype(dtype).reshape(shape)
    is_token = "id" in value.name and "pos" not in value.name
    return np.full(shape, token if is_token else position, dtype)


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
