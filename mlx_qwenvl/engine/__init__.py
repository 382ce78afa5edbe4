"""Logits to tokens: options, sampling, sessions, prefill and the decode step."""
