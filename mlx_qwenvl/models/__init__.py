"""Numbers to logits: configuration, rotary positions, vision tower, text decoder, Qwen2-VL."""
