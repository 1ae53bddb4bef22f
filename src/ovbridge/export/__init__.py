"""A trained detector as one ONNX file whose vocabulary is an input."""
