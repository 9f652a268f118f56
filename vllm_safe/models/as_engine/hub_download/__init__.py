"""Download of a model's files from a hub: complete or not at all, and resumed where an earlier run was interrupted.

huggingface_hub provides the listing, the URLs, the headers and the session. Its own download function is not used: since
huggingface_hub 2 it discards a partial file when it is interrupted, and it compares sizes but not hashes.
"""
