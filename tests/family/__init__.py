"""Qwen2-VL's younger siblings."""
