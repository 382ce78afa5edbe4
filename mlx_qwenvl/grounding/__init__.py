"""What an answer points at: boxes in its text, in pixels of the picture, and drawn into it."""
