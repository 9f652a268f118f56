"""Programs that the engine's own Python runs as user vllm. They import the standard library and the engine's packages, not vllm_safe."""
