"""Several processes that hold one model together: how they meet, keep step and end."""
