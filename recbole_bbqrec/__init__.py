"""BBQRec for RecBole: behaviour-bind quantisation for multi-modal sequential recommendation (arXiv 2504.06636).

The package has ten public names. `run` trains and evaluates a model. `load_bundle` loads the folder that a run leaves,
as a `Bundle`, to recommend; `load_data_and_model` loads it with its data. `register` makes the models known to
RecBole's own scripts. `BehaviorBindTokenizer`, `RQVAETokenizer` and `ResidualKMeansTokenizer` learn semantic IDs from
plain tensors. `BBQRec` is the model, and wrong input raises an `InputError`.

Importing this package changes nothing and loads neither RecBole, torch nor transformers; each name loads what it needs
when it is used.
"""

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .errors import InputError
    from .model.bbqrec import BBQRec
    from .serving.bundle import Bundle
    from .tokenizer.features import ResidualKMeansTokenizer, RQVAETokenizer
    from .tokenizer.fit import BehaviorBindTokenizer

__version__ = "1.0.0"
__all__ = [
    "BBQRec",
    "BehaviorBindTokenizer",
    "Bundle",
    "InputError",
    "RQVAETokenizer",
    "ResidualKMeansTokenizer",
    "load_bundle",
    "load_data_and_model",
    "register",
    "run",
]

_PLACES = {
    "BBQRec": "model.bbqrec",
    "BehaviorBindTokenizer": "tokenizer.fit",
    "Bundle": "serving.bundle",
    "InputError": "errors",
    "RQVAETokenizer": "tokenizer.features",
    "ResidualKMeansTokenizer": "tokenizer.features",
}


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_PLACES[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def run(arguments: Sequence[str] = (), config_dict: dict[str, Any] | None = None) -> dict[str, Any]:
    """Train and evaluate one model on one data set, as `bbqrec train` does.

    Parameters
    ----------
    arguments : settings as `--key=value` strings, which override `config_dict`.
    config_dict : settings by key; docs/settings.md has them all.

    Returns
    -------
    The record of the run: `metrics` by split and column, `run_dir`, `seconds`, `epochs`, `settings` and more.

    Raises
    ------
    InputError : a setting, file or name is wrong.

    Examples
    --------
    >>> record = run(config_dict={**settings, "epochs": 1, "show_progress": False})  # doctest: +ELLIPSIS
    <BLANKLINE>
    BBQRec* on tiny, seed 2020
    ...
    >>> sorted(record["metrics"]["valid"])
    ['masked', 'unmasked']
    """
    from .quick_start import run as run_one

    return run_one(arguments, config_dict)


def register() -> None:
    """Make BBQRec known by name to RecBole's own `run`, `run_recbole` and hyper-parameter tuning.

    It may be called more than once. It adds our models, their data set, trainers and properties to RecBole's look-up
    tables. It also makes RecBole's entry points and its own models work on current numpy, pandas, scipy and torch, and
    without ray: see docs/baselines.md. The run script of this project does not need it.

    Examples
    --------
    >>> register()
    >>> from recbole.utils import get_model
    >>> get_model("BBQRec").__name__
    'BBQRec'
    """
    from .registration import register as register_in_recbole

    register_in_recbole()


def load_bundle(path: str | Path, device: Any = "cpu") -> "Bundle":
    """Load the folder of a finished run, or `hf://org/name` from the Hugging Face hub, without its data set.

    Parameters
    ----------
    path : the folder or address.
    device : where the model computes, such as `"cuda"`.

    Raises
    ------
    InputError : the folder is missing, incomplete or damaged, or its model needs its data set.

    Examples
    --------
    >>> bundle = load_bundle(folder)  # the one that the last lines of a run name
    >>> items, scores, unknown = bundle.recommend([["i01", "i02"]], k=3)[0]
    >>> len(items), unknown
    (3, [])
    """
    from .serving.bundle import load_bundle as load

    return load(path, device)


def load_data_and_model(model_file: str | Path, config_dict: dict[str, Any] | None = None) -> Any:
    """Load a run's folder with its data: config, model, data set and three loaders, as RecBole's function does.

    Parameters
    ----------
    model_file : folder of a run, or its `weights.safetensors`.
    config_dict : settings to change, such as `data_path` if the data has moved.

    Raises
    ------
    InputError : the folder or its data set is missing, or the data set is not the one that was trained on.

    Examples
    --------
    >>> config, model, dataset, train, valid, test = load_data_and_model(folder)
    >>> type(model).__name__, dataset.dataset_name
    ('BBQRec', 'tiny')
    """
    from .quick_start import load_data_and_model as load

    return load(model_file, config_dict)
