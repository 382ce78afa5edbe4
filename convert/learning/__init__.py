"""Rounding that is learned from pictures: prompts, their texts, and one layer after another."""
