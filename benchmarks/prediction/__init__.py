"""A network and a device that is not at hand -> predicted microseconds of every step.

    python -m benchmarks.prediction model.onnx --target sapphire_rapids --threads 2

Nothing here is measured on that device: these are PREDICTIONS, to rank what costs most. The machine
code is the real one. Its basic blocks are counted while it runs here, on the emulator where it has
tile instructions (tests/emulator), which also tells the shapes and addresses of tile loads, and two
simulated caches say where those rows come from. llvm-mca (Debian: apt install llvm-19) says what
every other instruction takes of the core's ports; overlap.py what of all that can go on at once.
"""
