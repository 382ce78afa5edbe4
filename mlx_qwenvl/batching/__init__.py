"""One question about many pictures: what to ask, what is done already, and where answers go."""
