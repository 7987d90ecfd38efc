"""Decides which environment variables a task gets: a list of what is known to be harmless, and what its owner names.

Everything else stays with the owner's node: passwords and tokens have no common name (PGPASSWORD, AWS_ACCESS_KEY_ID,
GOOGLE_APPLICATION_CREDENTIALS), and the proxies of a network often carry one in their address.
"""

import os
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager

_PASSED = frozenset(
    {
        # the account and the terminal
        *("HOME", "USER", "LOGNAME", "SHELL", "PATH", "TMPDIR", "TZ", "LANG", "LANGUAGE"),
        *("TERM", "COLUMNS", "LINES", "NO_COLOR", "XDG_CACHE_HOME"),
        # where programs and libraries are
        *("LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "VIRTUAL_ENV", "CONDA_PREFIX", "TORCH_HOME"),
        *("PYTHONPATH", "PYTHONHOME", "PYTHONUSERBASE", "PYTHONNOUSERSITE", "PYTHONHASHSEED"),
        *("PYTHONDONTWRITEBYTECODE", "PYTHONPYCACHEPREFIX", "PYTHONUTF8", "PYTHONWARNINGS"),
        *("PYTHONFAULTHANDLER", "PYTHONOPTIMIZE"),
        "GPU_DEVICE_ORDINAL",
    }
)
# Settings of the libraries that compute: threads, devices, determinism.
_PREFIXES = (
    *("LC_", "OMP_", "GOMP_", "KMP_", "MKL_", "OPENBLAS_", "NUMEXPR_", "VECLIB_", "ATEN_"),
    *("CUDA_", "CUBLAS_", "CUDNN_", "NVIDIA_", "NCCL_", "PYTORCH_"),
    *("HIP_", "HSA_", "ROCR_", "ROCM_", "MIOPEN_"),
)


def passed_on(ours: Mapping[str, str], named: Collection[str] = ()) -> dict[str, str]:
    """What of our environment a task gets, whose owner names these variables beside."""
    return {
        name: value
        for name, value in ours.items()
        if name in _PASSED or name in named or name.startswith(_PREFIXES)
    }


@contextmanager
def as_the_task_has_it(named: Collection[str] = ()) -> Iterator[None]:
    """Inside, this process has the environment that it would pass on, and no more."""
    ours = dict(os.environ)
    passed = passed_on(ours, named)
    for name in ours.keys() - passed.keys():
        del os.environ[name]
    try:
        yield
    finally:
        os.environ.update({name: value for name, value in ours.items() if name not in passed})
