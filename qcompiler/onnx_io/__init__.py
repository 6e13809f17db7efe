"""ONNX files <-> graphs."""
