"""From the package to an answer of the real vLLM, in a throwaway Debian: `make demo`."""
