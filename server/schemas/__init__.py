"""Wire forms: each module reads one of them and makes a `Call` of it."""
