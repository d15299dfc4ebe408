"""Importing, done: reads weights from a memory map and writes ONNX Runtime GenAI's layout, one tensor at a time.

Needs numpy and onnx, no PyTorch and no transformers. May be imported by ``runtime.store`` and by ``commands``.
"""
