"""A converted folder on the Hugging Face Hub: its card, and sending both."""
