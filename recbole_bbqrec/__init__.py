"""BBQRec for RecBole: behaviour-bind quantisation for multi-modal sequential recommendation (arXiv 2504.06636).

Importing this package changes nothing and loads neither RecBole, ray nor transformers; `register`, `load_bundle` and
`load_data_and_model` load what they need when they are called.
"""

from pathlib import Path
from typing import Any

__version__ = "0.1.0"
__all__ = ["load_bundle", "load_data_and_model", "register"]


def register() -> None:
    """Make BBQRec known by name to RecBole's own `run`, `run_recbole` and hyper-parameter tuning.

    Explicit and idempotent. It adds our models, their data set, trainers and properties to RecBole's look-up tables and
    meets what keeps RecBole's entry points and its own models from working on today's numpy, pandas, scipy and torch,
    and without ray: see docs/baselines.md. The run script of this project does not need it.
    """
    from .registration import register as register_in_recbole

    register_in_recbole()


def load_bundle(path: str | Path, device: Any = "cpu") -> Any:
    """Load the folder that a finished run left; see `recbole_bbqrec.serving.load_bundle`."""
    from .serving.bundle import load_bundle as load

    return load(path, device)


def load_data_and_model(model_file: str | Path, config_dict: dict[str, Any] | None = None) -> Any:
    """Read a run's folder back with its data; see `recbole_bbqrec.quick_start.load_data_and_model`."""
    from .quick_start import load_data_and_model as load

    return load(model_file, config_dict)
