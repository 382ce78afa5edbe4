"""The conversation in a terminal: what is typed, what it does, and how it looks."""
