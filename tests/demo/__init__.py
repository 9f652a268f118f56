"""`make demo`: from the package to an answer of the real vLLM, in a throwaway Debian."""
