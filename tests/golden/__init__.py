"""Recordings from Hugging Face Transformers, and the tiny checkpoint they were made with."""
