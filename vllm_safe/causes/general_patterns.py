"""General patterns for errors of settings, models and the engine, searched for after the specific ones and those of GPUs and the host."""

from __future__ import annotations

from vllm_safe.causes.patterns import MAYBE, NEVER, Pattern

GENERAL: tuple[Pattern, ...] = (
    Pattern(
        "cuda-memory",
        r"(?:[Nn]ot enough|[Ii]nsufficient|[Rr](?:an|uns?|unning) out of|[Oo]ut of) "
        r"(?:free )?(?:GPU |device |video )?(?:memory|VRAM)\b(?!\?)",
        MAYBE,
        "sglang: model_runner.py, schedule_batch.py; text-generation-inference: warmup; exllama",
    ),
    Pattern("illegal-instruction", r"^Fatal Python error: Illegal instruction", NEVER, "CPython: Modules/faulthandler.c"),
    Pattern(
        "no-module",
        r"No module named '?(?P<module>[\w.]+)|Cannot find (?:module|package) '(?P<package>[^']+)'",
        NEVER,
        "CPython: importlib; Node: internal/modules",
    ),
    Pattern(
        "no-module",
        r"^(?:[\w.]+\.)?(?:Import|ModuleNotFound)Error: (?:[Pp]lease |[Tt]ry )?(?:pip3? )?install(?:ing)? [`'\"]?(?P<wanted>[\w.-]+)|"
        r"requires the (?P<library>[\w.-]+) library but it was not found|"
        r"packages that were not found in your environment: (?P<packages>\S+)",
        NEVER,
        "vllm; transformers/utils/import_utils.py, dynamic_module_utils.py",
        "package",
    ),
    Pattern(
        "broken-engine", r"version `(?P<version>(?:GLIBC|GLIBCXX|CXXABI)_[\d.]+)' not found", NEVER, "glibc: dl-version.c", "old-system"
    ),
    Pattern(
        "broken-engine",
        r"cannot import name '(?P<name>[^']+)'|undefined symbol: (?P<symbol>\w+)|symbol lookup error|"
        r"is required for a normal functioning of this module|binary incompatibility",
        NEVER,
        "CPython: importlib; glibc: dl-load.c, dl-lookup.c; transformers/utils/versions.py",
    ),
    Pattern(
        "bad-setting",
        r"(?:^|: )Value error, (?P<what>.+?)(?: \[type=\w+.*)?$",
        NEVER,
        "pydantic, as vllm/config uses it",
    ),
    Pattern("bad-setting", r"^(?P<what>.+: .+?) \[type=\w+, input", NEVER, "pydantic, of a field"),
    Pattern(
        "bad-setting",
        r"^(?:[\w.]*)ValidationError: \d+ validation errors? for (?P<section>\w+)",
        NEVER,
        "pydantic, as vllm/config uses it",
    ),
    Pattern(
        "bad-setting",
        r"^(?:ValueError|NotImplementedError|AssertionError|TypeError|RuntimeError|KeyError|"
        r"[\w.]*ConfigError): (?P<what>.{0,300}?(?:--[a-z][\w-]+|"
        r"is not a valid choice|must be one of|should be one of|is not supported (?:with|when|together)|cannot be (?:used|combined) with|"
        r"(?:lower|reduce|increase|decrease|set) `?\w+_\w+`? to ).*)",
        NEVER,
        "vllm/config, vllm/engine/arg_utils.py",
    ),
    Pattern(
        "bad-setting",
        r"(?:^ValueError: |^(?=LoRA ))(?P<what>.{0,200}?(?:(?:great|larg|small|low|high)er|less|more) than (?:or equal to )?(?:the )?"
        r"`?(?:max|min)_\w+.*|.{0,100}?\b(?:max|min)_\w+ .{0,60}?must (?:not )?be .*)",
        NEVER,
        "vllm/config, vllm/lora/peft_helper.py:196, vllm/v1/core/encoder_cache_manager.py:350",
    ),
    Pattern(
        "card-too-old",
        r"only supports? \w+ (?:GPUs|cards|devices) or (?:newer|later)|only supported on (?:GPUs|devices) with compute capability|"
        r"requires (?:a GPU with )?compute capability|fp8e4nv not supported|"
        r"compute capability (?:>=|of at least)|requires SM ?\d|not supported on (?:this|the current) (?:GPU|device|architecture)",
        NEVER,
        "vllm/platforms, vllm/model_executor/layers/quantization; triton/language/semantic.py",
    ),
    Pattern(
        "no-program",
        r"^(?:[\w./]*sh: )(?:(?:line )?\d+: )?(?:exec: )?(?P<program>\S+?): (?:not found|command not found)",
        NEVER,
        "sh(1)",
        "no-command",
    ),
    Pattern(
        "no-program",
        r"Exec format error|cannot execute binary file|\bENOEXEC\b",
        NEVER,
        "errno ENOEXEC: built for another architecture",
        "wrong-machine",
    ),
    Pattern(
        "cuda-memory",
        r"(?:[Uu]nable|[Ff]ailed) to allocate (?:\w+ )*?(?:backend|compute|KV|output|cache)(?: \w+)? buffers?\b|"
        r"error loading model: (?:unable|failed) to allocate",
        MAYBE,
        "llama.cpp: src/llama-context.cpp, llama-model.cpp",
        "buffers",
    ),
    Pattern(
        "unsupported-model",
        r"error loading model: (?P<what>.+)",
        NEVER,
        "llama.cpp: src/llama.cpp, errors that no other row matches",
        "unloadable",
    ),
    Pattern(
        "damaged-file",
        r"JSONDecodeError\b|TOMLDecodeError\b|yaml\.\w+\.\w+Error\b|codec can't decode",
        NEVER,
        "CPython: json, tomllib, codecs; PyYAML",
    ),
)
