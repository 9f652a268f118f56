"""The main process of vllm@NAME.service: starts, watches and ends the server. Standard library only (20 MB resident)."""
