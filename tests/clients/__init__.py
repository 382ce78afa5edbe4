"""Clients that nobody here wrote, over loopback against a server with the embedded model."""
