"""Silence of the libraries below the command line, so that stderr holds what concerns the user.

Only the command line calls this. Programs that import bmpeft keep their own settings.
"""

from __future__ import annotations

import logging
import os
import sys
import warnings

# Read by the libraries when they are first imported, hence set before that.
_ENVIRONMENT = {
    "DATASETS_VERBOSITY": "error",
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",  # ours are the only bars
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",  # transformers' "Loading weights" follows this one too
    "HF_HUB_VERBOSITY": "error",
    "TF_CPP_MIN_LOG_LEVEL": "3",  # tensorboard imports tensorflow where that happens to be installed
    "TOKENIZERS_PARALLELISM": "false",  # else tokenizers warns when a data-loading process is forked
    "TRANSFORMERS_VERBOSITY": "error",
}


def quiet_libraries() -> None:
    """Let the libraries speak of errors only. What the user has set in the environment stays as it is.

    Call it before torch, transformers, peft, datasets or bitsandbytes are imported.
    """
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    # Warns at import, on CPUs with AVX512-BF16, that an optional package is missing; its own kernel is used then.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    # Says what it dislikes in a damaged image, which is then refused by name.
    logging.getLogger("PIL").setLevel(logging.CRITICAL)
    # The interpreter's own rule: an option -W or PYTHONWARNINGS means that the user wants to see warnings.
    if not sys.warnoptions:
        warnings.simplefilter("ignore")
