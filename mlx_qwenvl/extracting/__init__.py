"""Answers of a given form: short descriptions of it, and tables of what came."""
