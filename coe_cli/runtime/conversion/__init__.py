"""Other formats to ONNX Runtime GenAI's layout, and what that loses."""
