"""Logits to tokens: options, sampling, conversations, prefill and the decode step."""
