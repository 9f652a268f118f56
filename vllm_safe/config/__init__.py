"""What the person asked for: `/etc/vllm-safe/config.yaml` as immutable, checked values."""
