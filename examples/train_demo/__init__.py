"""Training of the embedded demo model: drawn scenes, questions about them, a tiny Qwen2-VL."""
