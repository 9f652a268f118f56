"""The configuration: `/etc/vllm-safe/config.yaml` as immutable, validated values."""
