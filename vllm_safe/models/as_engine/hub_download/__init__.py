"""Fetch a model's files from a hub: complete or not at all, resumed where an earlier run was broken off.

huggingface_hub gives the listing, the addresses, the headers and the session. Its own download function is not used: since
huggingface_hub 2 it throws away what it has of a file when it is interrupted, and it compares sizes but not hashes.
"""
