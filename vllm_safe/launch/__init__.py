"""The main process of vllm@NAME.service: starts the server, says when it is ready, ends it. Standard library only (20 MB resident)."""
