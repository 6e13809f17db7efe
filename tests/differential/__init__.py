"""Seed -> a random ONNX model and inputs -> what the compiler makes of it, against what it means.

`generate` makes the model, from steps that the families (`arithmetic`, `moves`, `products`,
`windows`, `sequences`, `quantized`) add to a `builder`; `reference` is the numpy meaning with a
bound on what rounding may change; `checks` compares every stage, the artifact and onnxruntime with
it; `shrink` makes a failing model small; `mutants` damages models and `damage` artifacts. `python
-m tests.differential` runs many of them.
"""
