"""The type of a pattern, and the patterns for errors of vLLM, its libraries and other model servers: settings, models and the engine.

A pattern is searched for anywhere in a line of an error; `^` anchors those that would match too much. In `source`, "vllm" is vLLM 0.32.0,
and "torch", "triton", "transformers" and "huggingface_hub" are the versions in its lock; the named files contain these messages.
"""

from __future__ import annotations

from typing import NamedTuple

NEVER, MAYBE = True, False  # whether a second start can work


class Pattern(NamedTuple):
    """A row of the table.

    never_can_work: a second start with the same configuration would end with the same error, until somebody changes something.
    code: the identifier for programs. kind: a variant of the code with a message of its own, or "". source: the file that prints the error.
    """

    code: str
    regex: str
    never_can_work: bool
    source: str
    kind: str = ""


SPECIFIC: tuple[Pattern, ...] = (
    Pattern("no-program", r"^vllm-safe: error: cannot run (?P<program>.+?): ", NEVER, "vllm_safe/launch/server_process.py"),
    Pattern(
        "bad-argument",
        r"^(?:(?:[\w./-]+ )*[\w./-]+: )?(?i:error: )(?P<what>(?:unrecognized|unexpected|argument|invalid|unknown|ambiguous|the following|"
        r"one of|expected|unsupported|a value is required).+)|^(?P<flag>(?:unknown (?:shorthand )?flag|flag provided but not defined|"
        r"[\w./-]+: (?:unrecognized|invalid) option|node: bad option).+)",
        NEVER,
        "argparse; vllm/utils/argparse_utils.py; llama.cpp: common/arg.cpp; clap; Go: flag, cobra; getopt_long(3)",
    ),
    Pattern(
        "kv-cache-too-small",
        r"To serve at least one request with the model's max seq len \((?P<wanted>\d+)\), \((?P<needed>[\d.]+) GiB KV "
        r"cache is needed, which is larger than the available KV cache memory \((?P<free>[\d.]+) GiB\)"
        r"(?:.*estimated maximum model length is (?P<length>\d+))?",
        NEVER,
        "vllm/v1/core/kv_cache_utils.py:1030",
    ),
    Pattern(
        "no-kv-cache",
        r"No available memory for the cache blocks|Cannot auto-fit max_model_len",
        NEVER,
        "vllm/v1/core/kv_cache_utils.py:1011, 2455",
    ),
    Pattern(
        "cache-blocks",
        r"max_num_seqs \((?P<wanted>\d+)\) exceeds available Mamba cache blocks \((?P<blocks>\d+)\)",
        NEVER,
        "vllm/v1/worker/gpu_model_runner.py; vllm issue 49064",
    ),
    Pattern(
        "longer-than-model",
        r"User-specified max_model_len \((?P<wanted>\d+)\) is greater than the derived max_model_len \(\w+=(?P<length>[\d.]+)",
        NEVER,
        "vllm/config/model.py:2646",
    ),
    Pattern(
        "too-few-gpus",
        r"World size \((?P<wanted>\d+)\) is larger than the number of available GPUs \((?P<gpus>\d+)\)",
        NEVER,
        "vllm/config/parallel.py:1053",
    ),
    Pattern(
        "heads",
        r"Total number of attention heads \((?P<heads>\d+)\) must be divisible by tensor parallel size \((?P<wanted>\d+)\)",
        NEVER,
        "vllm/config/model.py:1548",
    ),
    Pattern(
        "heads",
        r"put size is not aligned with the quantized weight shape|caused by too large tensor parallel size|"
        r"size_per_partition = \d+ is not divisible|"
        r"(?:not|must be) divisible by (?:the )?(?:tensor[ _-](?:model[ _-])?parallel|tp_size|number of (?:partitions|GPUs))",
        NEVER,
        "vllm/model_executor/layers/quantization; vllm issues 5675, 9913, 13980",
        "shapes-by-cards",
    ),
    Pattern(
        "dtype",
        r"[Bb]float16 is only supported on GPUs with compute capability|(?:bf16|bfloat16) is not supported (?:on|by) ",
        NEVER,
        "vllm/platforms/cuda.py:649",
    ),
    Pattern(
        "gated",
        r"You are trying to access a gated repo|Cannot access gated repo|\S+ is a gated repository|^(?:[\w.]+\.)?GatedRepoError\b",
        NEVER,
        "transformers/utils/hub.py:611, 708; huggingface_hub/utils/_http.py:890",
    ),
    Pattern(
        "remote-code",
        r"(?:Please pass the argument|Please set the option|consider setting) `trust_remote_code=True`|requires you to execute the .{0,40}"
        r"(?:code|file) in that repo",
        NEVER,
        "transformers/dynamic_module_utils.py:704, 777; vllm/transformers_utils/config.py:411",
    ),
    Pattern(
        "not-fetched",
        r"We couldn't connect to '[^']*' to load (?:the|this) file|Cannot find the requested files in the disk cache and outgoing|"
        r"(?:^[\w.]+: )?Cannot reach (?:https?://[^/\s]+/)?(?:api/models/)?(?P<what>[^\s:?]+)\S*: offline mode is enabled|"
        r"^(?:[\w.]+\.)?(?:OfflineModeIsEnabled\b(?!: Cannot reach)|LocalEntryNotFoundError\b)|"
        r"an appropriate snapshot folder .* on the (?:local )?disk",
        NEVER,
        "transformers/utils/hub.py:621; huggingface_hub/errors.py:478",
    ),
    Pattern(
        "no-model",
        r"Couldn't instantiate the backend tokenizer|Can't load tokenizer for|Unable to load vocabulary from|"
        r"[Tt]okenizer (?:file|class) .{0,80}(?:not found|does not exist)|Failed to load (?:the )?tokenizer",
        NEVER,
        "transformers/tokenization_utils_tokenizers.py; vllm/tokenizers",
        "no-tokenizer",
    ),
    Pattern(
        "no-model",
        r"Invalid repository ID or local directory specified:| is not a local folder and is not a valid model|"
        r"Cannot find any (?:safetensors )?model weights with| does not appear to have a file named (?P<file>\S+)\. |"
        r"Can't load (?:the )?(?:configuration|config|model|image processor|feature extractor|processor) (?:of|for)|"
        r"^(?:[\w.]+\.)?(?:RepositoryNotFoundError|HFValidationError|EntryNotFoundError)\b|no file named .{0,80} found in|"
        r"(?:No such file or directory|failed to open|cannot open).{0,40}?[\w./-]+\.(?:safetensors|gguf|bin|pt)\b(?!.*ermission denied)|"
        r"failed to open GGUF file(?!.*[Pp]ermission denied)|\.(?:safetensors|gguf)['\"]?: No such file",
        NEVER,
        "vllm/transformers_utils/config.py:849; vllm/model_executor/model_loader/default_loader.py:260; "
        "transformers/utils/hub.py:471, 570; llama.cpp: ggml/src/gguf.cpp",
    ),
    Pattern(
        "damaged-model",
        r"^(?:[\w.]+\.)?SafetensorError\b|Error while deserializing header|header too (?:large|small)|PytorchStreamReader failed|"
        r"^(?:[\w.]+\.)?UnpicklingError\b|invalid magic (?:number|characters)|tensor '[^']*' data is not within the file bounds|"
        r"version https://git-lfs|file (?:may be|is) (?:corrupt|incomplete|truncated)|"
        r"(?:It looks like the config file|The config file) at .{0,200} is not a valid JSON",
        NEVER,
        "safetensors: safetensors_rust.SafetensorError; torch: caffe2/serialize; llama.cpp: src/llama-model-loader.cpp, ggml/src/gguf.cpp",
    ),
    Pattern(
        "unsupported-model",
        r"has model type [`'](?P<type>[^`']+)[`'] but Transformers does not recognize|"
        r"unknown model architecture: '(?P<architecture>[^']*)'|"
        r"Model architectures? \[?'?(?P<name>[\w ,']+?)'?\]? (?:are not supported for now|failed to be inspected|is not supported in-tree)|"
        r"[Aa]rchitecture [`'\"]?(?P<kind>[\w.-]+)[`'\"]? (?:is )?(?:not supported|unsupported)|"
        r"[Uu]nsupported model (?:type|architecture)|does not support (?:the )?model (?:type|architecture)",
        NEVER,
        "vllm/model_executor/models/registry.py:1182, 1206; transformers/models/auto/configuration_auto.py; llama.cpp: src/llama-model.cpp",
    ),
    Pattern(
        "unsupported-model",
        r"Quantization scheme is not supported(?!.*Min capability)|quantization method \S+ is not supported|"
        r"Min(?:imum)? capability: (?P<wanted>\d+)\. Current capability: (?P<there>\d+)",
        NEVER,
        "vllm/config/vllm.py:903; compressed_tensors.py",
        "quantization",
    ),
    Pattern(
        "unsupported-model",
        r"(?:[Uu]nknown|[Ii]nvalid|[Uu]nsupported) quantization|does not match the quantization method specified",
        NEVER,
        "vllm/config/model.py:1446, 1454; vllm/model_executor/layers/quantization",
        "quantization-method",
    ),
    Pattern(
        "weights",
        r"^KeyError: '(?P<weight>[^']*(?:(?:layers|blocks|h)\.\d+|lm_head|embed_tokens|\.weight|\.bias|_weight|weight_scale|g_idx)[^']*)'|"
        r"There is no module or parameter named '(?P<parameter>[^']+)'|Attempted to load weight|size mismatch for|"
        r"Error\(s\) in loading state_dict|weights were not initialized from checkpoint|assert .*loaded_weight|"
        r"tensor '[^']+' has wrong shape|\b[Ww]eight (?P<name>[\w.]+\.\w+) (?:does not exist|not found|is missing)|"
        r"missing tensor '(?P<tensor>[^']+)'",
        NEVER,
        "vllm/model_executor/models/*.py, load_weights; torch: nn/modules/module.py; llama.cpp: src/llama-model-loader.cpp; "
        "text-generation-inference: utils/weights.py",
    ),
    Pattern(
        "no-nvcc",
        r"Could not find nvcc|nvcc not found at|No such file or directory: '(?:[\w./-]*/)?nvcc'|\bnvcc: (?:command )?not found|"
        r"CUDA_HOME environment variable is not set",
        NEVER,
        "flashinfer/jit/cpp_ext.py; torch/utils/cpp_extension.py:628; vllm issues 49497, 21960",
    ),
    Pattern(
        "no-nvcc",
        r"CUDA compiler and CUDA toolkit headers are incompatible|Ninja build failed|nvcc fatal|Error building extension|"
        r"The detected CUDA version \([\d.]+\) mismatches the version",
        NEVER,
        "flashinfer/jit/cpp_ext.py:418; torch/utils/cpp_extension.py",
        "nvcc-failed",
    ),
    Pattern(
        "no-nvcc",
        r"FlashInfer requires (?:GPUs with )?sm ?\d+|No supported CUDA architectures found",
        NEVER,
        "flashinfer/jit/core.py, compilation_context.py: what its nvcc can build for, not what the card is; flashinfer issue 3675",
        "flashinfer-cards",
    ),
    Pattern(
        "no-compiler",
        r"No such file or directory: '(?:[\w./-]*/)?ninja'|\bninja: (?:command )?not found|Ninja is required to load C\+\+ extensions",
        NEVER,
        "flashinfer/jit/cpp_ext.py; torch/utils/cpp_extension.py; vllm issue 49029",
        "no-ninja",
    ),
    Pattern(
        "no-compiler",
        r"Failed to find C compiler|No working C\+\+ compiler found|Compiler: \S+ is not found|fatal error: Python\.h: No such file|"
        r"\b(?:gcc|g\+\+|cc|c\+\+|clang|cmake): (?:command )?not found|"
        r"No such file or directory: '(?:[\w./-]*/)?(?:gcc|g\+\+|cc|c\+\+|cmake)'|"
        r"command '\S*(?:gcc|g\+\+|cc)' failed",
        NEVER,
        "triton/runtime/build.py:33; torch/_inductor/exc.py:88",
    ),
    Pattern(
        "compile-cache",
        r"corrupted compilation artifact|remove \S*torch_compile_cache",
        NEVER,
        "vllm/compilation/backends.py; vllm issues 21858, 18851",
    ),
    Pattern(
        "bad-setting",
        r"(?P<what>invalid (?:tool call|reasoning) parser: .+?)(?:\\n.*)?['\"]?$",
        NEVER,
        "vllm/entrypoints/openai/api_server.py",
    ),
)
