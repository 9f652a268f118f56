"""Patterns for errors of the kernel and the C library: the values of errno(3) as C, C++, Python, Go, Rust and Node print them."""

from __future__ import annotations

from vllm_safe.causes.patterns import MAYBE, NEVER, Pattern

# Sockets and locks return EAGAIN as well: it is an error of threads and processes only where one was to be started.
_STARTS = r"(?:(?:\b|_)v?fork|\bclone\b|\bexec|[Tt]hread|(?:\b|_)spawn)"
_AGAIN = r"(?:[Rr]esource temporarily unavailable|os error 11\b|\bEAGAIN\b)"
_PATH = r"(?:.{0,200}?['\"<` ](?P<path>/[^'\">`\s:,]+))?"

HOST: tuple[Pattern, ...] = (
    Pattern(
        "no-threads",
        r"can't start new thread|pthread_create(?:\(\))? failed|Thread creation failed|failed to create new OS thread|newosproc|"
        r"blas_thread_init|OMP: Error #34|[Uu]nable to create (?:a )?(?:new )?(?:native )?thread|failed to spawn thread|"
        rf"{_STARTS}.{{0,120}}{_AGAIN}|{_AGAIN}.{{0,120}}{_STARTS}",
        NEVER,
        "errno EAGAIN of clone(2) and fork(2); libgomp, OpenBLAS, CPython, Go, Rust",
    ),
    Pattern(
        "locked",
        r"(?:[Uu]nable|[Cc]ould not|[Cc]ouldn't|[Cc]annot|[Ff]ailed) to? ?(?:lock|(?:get|acquire|obtain|take) .{0,30}\block)\b|"
        r"\b(?:\w*\.)?(?:lock|LOCK)(?:file| file)?\b.{0,120}(?:[Rr]esource temporarily unavailable|held by|already locked)|\bflock\b|"
        r"database is locked|file lock .{0,200}could not be acquired|"
        r"[Aa]nother (?:instance|process) (?:is|has) .{0,40}\b(?:lock|database|folder|directory|file)",
        MAYBE,
        "errno EAGAIN of fcntl(2) and flock(2); SQLite, HDF5, RocksDB",
    ),
    Pattern(
        "kv-space",
        r"Available memory on node \S+ \((?P<free>[\d.]+)/(?P<total>[\d.]+) GiB\) on kv cache allocation is less than "
        r"requested memory for kv \((?P<wanted>[\d.]+)",
        MAYBE,
        "vllm/v1/worker/cpu_worker.py:218",
    ),
    Pattern("no-host-memory", r"heap out of memory|OutOfMemoryError: Java heap", MAYBE, "V8, JVM", "own-heap"),
    Pattern(
        "no-host-memory",
        r"unable to mmap (?P<wanted>\d+) bytes|DefaultCPUAllocator: (?:can't allocate|not enough) memory|^MemoryError\b|std::bad_alloc|"
        r"[Cc]annot allocate memory(?! in static TLS)|memory allocation of (?P<size>\d+) bytes failed|os error 12\b|\bENOMEM\b|"
        r"fatal error: (?:runtime: )?out of memory|failed to allocate (?P<bytes>\d+) bytes|numpy\S*ArrayMemoryError|failed to mmap",
        MAYBE,
        "errno ENOMEM; torch: c10/core/impl/alloc_cpu.cpp, aten MapAllocator.cpp; vllm issues 9753, 759",
    ),
    Pattern(
        "port-taken",
        r"(?:(?:\d|\]|\w):(?P<number>\d{2,5})\b.{0,80}?|', (?P<bound>\d{2,5})\).{0,80}?|\bport:? (?P<port>\d{2,5})\b.{0,80}?)?"
        r"(?:\[Errno 98\]|\(98: ?|EADDRINUSE|[Aa]ddress (?:is )?already in use|os error 98\b|couldn't bind (?:HTTP server )?socket)"
        r"(?:.{0,80}?\bport:? (?P<after>\d{2,5})\b|.{0,80}?:(?P<end>\d{2,5})\b)?",
        MAYBE,
        "errno EADDRINUSE; vllm/entrypoints/launchers/launcher.py:348; llama.cpp: tools/server/server-http.cpp",
    ),
    Pattern(
        "disk-full",
        r"No space left on device|no space left on device|os error 28\b|\bENOSPC\b|StorageFull|Disk quota exceeded|\bEDQUOT\b",
        MAYBE,
        "errno ENOSPC, EDQUOT",
    ),
    Pattern(
        "no-address",
        r"\[Errno 99\]|[Cc]annot assign requested address|EADDRNOTAVAIL|os error 99\b",
        MAYBE,  # the network interface may come up late
        "errno EADDRNOTAVAIL of bind(2)",
    ),
    Pattern(
        "io-error",
        r"[Ii]nput/output error|os error 5\b|\bEIO\b|Stale file handle|\bESTALE\b|Structure needs cleaning|"
        r"[Tt]ransport endpoint is not connected",
        MAYBE,
        "errno EIO, ESTALE, EUCLEAN, ENOTCONN",
    ),
    Pattern("too-many-files", r"[Tt]oo many open files|os error 24\b|\bEMFILE\b|\bENFILE\b", MAYBE, "errno EMFILE, ENFILE"),
    Pattern(
        "permission",
        r"(?:bind|listen).{0,80}(?:[Pp]ermission denied|EACCES|PermissionDenied)|"
        r"(?:errno: 13|EACCES|[Pp]ermission denied).{0,80}\b(?:bind|listen)",
        NEVER,
        "errno EACCES of bind(2)",
        "privileged-port",
    ),
    Pattern(
        "permission",
        r"[Rr]ead-only file ?system|ReadOnlyFilesystem|\bEROFS\b|os error 30\b" + _PATH,
        NEVER,
        "errno EROFS: ProtectSystem=strict of the unit",
    ),
    Pattern(
        "permission",
        r"(?:(?:mkdir|open|create|stat|access|read|write|lstat|unlink|rename|directory)\w* ['\"<]?(?P<file>/[^'\">:\s]+).{0,40}?)?"
        r"(?:[Pp]ermission denied|\bEACCES\b|PermissionDenied|os error 13\b|[Oo]peration not permitted|\bEPERM\b|"
        r"[Ii]nsufficient [Pp]ermissions)" + _PATH,
        NEVER,
        "errno EACCES, EPERM",
    ),
    Pattern(
        "missing-library",
        r"(?P<file>lib[\w+.-]+\.so[.\d]*): cannot open shared object file|(?P<library>lib[\w+-]+\.so[.\d]*) (?:cannot|not) found|"
        r"(?:Could not|Unable to|Failed to) (?:load|find|open) (?:dynamic |shared )?(?:library )?['\"]?(?P<name>lib[\w+-]+\.so[.\d]*)|"
        r"\bld: cannot find -l(?P<linked>[\w+-]+)",
        NEVER,
        "glibc: dl-load.c; triton/backends/nvidia/driver.py",
    ),
    Pattern(
        "no-file",
        r"Cannot find module '(?P<script>/[^']+)'|"
        r"(?:(?:open|stat|access|lstat|directory|scandir|file) ['\"<]?(?P<file>/[^'\">:\s]+).{0,40}?)?(?:[Nn]o such file or directory|"
        r"\bENOENT\b|"
        r"os error 2\b|Is a directory|is a directory|Not a directory|not a directory|\bEISDIR\b|\bENOTDIR\b)" + _PATH,
        NEVER,
        "errno ENOENT, EISDIR, ENOTDIR",
    ),
    Pattern(
        "network",
        r"Temporary failure in name resolution|Name or service not known|[Nn]etwork is unreachable|No route to host|no such host|"
        r"Max retries exceeded|ConnectTimeout|ReadTimeout|Connection timed out|i/o timeout|SSL: CERTIFICATE_VERIFY_FAILED|"
        r"\b(?:ENOTFOUND|EAI_AGAIN|ETIMEDOUT|EHOSTUNREACH|ENETUNREACH)\b|Failed to resolve",
        MAYBE,
        "errno ENETUNREACH, EHOSTUNREACH, ETIMEDOUT; getaddrinfo(3)",
    ),
)
