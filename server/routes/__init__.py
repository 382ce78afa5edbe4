"""Addresses: each module takes one wire form's requests and gives answers in the same form."""
