"""Fixes for what breaks in RecBole 1.2.1 on today's Python stack, in one place, each with its reason.

Nothing here runs on import. Points that live elsewhere because they are plain overrides of a RecBole method:

- pandas 3 makes `df[column].fillna(..., inplace=True)` a silent no-op: `data.loading` reads and fills columns itself;
- torch 2.6 refuses RecBole's pickled checkpoints: `training.checkpoint` keeps ours as safetensors and never unpickles.
"""

import contextlib
import functools
import importlib
import importlib.util
import os
import sys
import threading
import types
from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
import recbole.utils
import torch
from recbole.evaluator import Collector
from scipy.sparse import dok_matrix

_ONE_AT_A_TIME = threading.RLock()
"""Held while something process-wide is changed for a time: a second thread would restore the changed value for good."""


def restore_numpy_names() -> None:
    """Give RecBole the numpy names it still uses after numpy 2 removed them.

    `np.float` (metrics, collation, filling), `np.str` (hyper-tuning), `np.long` (field offsets) are used by RecBole
    when it runs; its own `Config` sets them, and more, from names that numpy 2 lacks and so cannot be built.
    `np.bool8` is what an old ray looks for on import. Names that exist are left alone.
    """
    for name, value in {"float": np.float64, "str": np.str_, "long": np.int_, "bool8": np.bool_}.items():
        if name not in np.__dict__:
            setattr(np, name, value)


def restore_removed_numpy_names() -> None:
    """Give stock `Config.compatibility_settings` the three names it reads; only RecBole's own scripts need them."""
    for name, value in {"float_": np.float64, "complex_": np.complex128, "unicode_": np.str_}.items():
        if name not in np.__dict__:
            setattr(np, name, value)


def restore_sparse_update() -> None:
    """Give scipy's `dok_matrix` the method `_update`, which newer versions lack and RecBole's graph models call."""
    if not hasattr(dok_matrix, "_update"):
        dok_matrix._update = lambda self, entries: self._dict.update(entries)


def stand_in_for_torch_scatter() -> None:
    """Give KGIN and MCCLK the two functions of `torch_scatter` that they import, where that is not installed.

    Each of its wheels is for one version of torch, and none is for a current one; torch itself has the operations.
    """
    if importlib.util.find_spec("torch_scatter") is None:
        module = types.ModuleType("torch_scatter")
        module.__spec__ = importlib.util.spec_from_loader("torch_scatter", None)
        vars(module).update(scatter_mean=_scatter_mean, scatter_softmax=_scatter_softmax)
        sys.modules["torch_scatter"] = module


def _scatter_mean(src: torch.Tensor, index: torch.Tensor, dim_size: int, dim: int = 0) -> torch.Tensor:
    """Mean [dim_size, W] of the rows of `src` [E, W] that go to each place; zero where none does."""
    counts = torch.bincount(index, minlength=dim_size).clamp(min=1).unsqueeze(1)
    return src.new_zeros(dim_size, src.shape[1]).index_add(dim, index, src) / counts


def _scatter_softmax(src: torch.Tensor, index: torch.Tensor, dim: int = 0) -> torch.Tensor:
    """Softmax of `src` [E, W], column by column, among the rows that go to the same place."""
    zeros, places = src.new_zeros(int(index.max()) + 1, src.shape[1]), index.unsqueeze(1).expand_as(src)
    largest = zeros.scatter_reduce(dim, places, src.detach(), "amax", include_self=False)
    raised = (src - largest[index]).exp()
    return raised / zeros.index_add(dim, index, raised)[index]


def restore_exhaustive_search() -> None:
    """Let RecBole's exhaustive search make a numpy `Generator`, from which hyperopt draws, not a `RandomState`."""
    numpy: Any = types.ModuleType("numpy")
    vars(numpy).update(vars(np), random=types.SimpleNamespace(RandomState=np.random.default_rng))
    vars(importlib.import_module("recbole.trainer.hyper_tuning"))["np"] = numpy


def stand_in_for_ray() -> None:
    """Let `recbole.quick_start` be imported where ray is missing or cannot be imported.

    RecBole imports `ray.tune` at the top of `recbole.quick_start` for one function that reports to Ray Tune. The ray
    that its metadata asks for has no wheel for Python 3.12 and later, and fails on import beside recent setuptools.
    """
    try:
        importlib.import_module("ray.tune")
    except Exception:  # an old ray fails in many ways: ImportError, AttributeError, pkg_resources errors
        for name in [name for name in sys.modules if name == "ray" or name.startswith("ray.")]:
            del sys.modules[name]
        ray, tune = types.ModuleType("ray"), types.ModuleType("ray.tune")
        tune.__dict__["report"] = lambda *_, **__: None  # RecBole's objective function calls it whoever runs it
        ray.__dict__["tune"] = tune
        sys.modules.update({"ray": ray, "ray.tune": tune})


@contextlib.contextmanager
def bars_that_go() -> Iterator[None]:
    """Keep the progress bars of RecBole's trainer from leaving a line behind for every epoch."""
    module: Any = importlib.import_module("recbole.trainer.trainer")
    bar, module.tqdm = module.tqdm, functools.partial(module.tqdm, leave=False)
    try:
        yield
    finally:
        module.tqdm = bar


@contextlib.contextmanager
def lengths_by_element() -> Iterator[None]:
    """Let `series.agg(len)` give the length of each element, as RecBole expects of its sequence columns.

    pandas 3 hands the whole series to the function and returns one number. RecBole calls it in half a dozen steps of
    building a data set, so pandas is changed for as long as that takes.
    """
    with _ONE_AT_A_TIME:
        original = pd.Series.agg

        def agg(self: Any, func: Any = None, *args: Any, **kwargs: Any) -> Any:
            return self.map(len) if func is len else original(self, func, *args, **kwargs)

        pd.Series.agg = agg  # type: ignore[method-assign]
        try:
            yield
        finally:
            pd.Series.agg = original  # type: ignore[method-assign]


def init_seed(config: Any) -> None:
    """Seed everything as RecBole does; with its `reproducibility`, a GPU adds up in a fixed order, run after run.

    RecBole's own switch reaches cuDNN alone. cuBLAS reads its variable when it starts: call this before anything is on
    the GPU. An operation that has no deterministic form warns and runs.
    """
    if config["device"].type == "cuda":
        if config["reproducibility"]:
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(config["reproducibility"], warn_only=True)
    recbole.utils.init_seed(config["seed"], config["reproducibility"])


class ListCollector(Collector):
    """RecBole's collector, mended for metrics of lists: the original asks plain numbers for a copy on the CPU."""

    def data_collect(self, train_data: Any) -> None:
        """Keep what metrics need of the training data apart from the tensors that are collected."""
        super().data_collect(train_data)
        found = self.data_struct._data_dict
        self._of_data = {name: found.pop(name) for name in [*found] if not isinstance(found[name], torch.Tensor)}

    def get_data_struct(self) -> Any:
        """Return everything collected, including what is known of the data."""
        found = super().get_data_struct()
        found._data_dict.update(getattr(self, "_of_data", {}))
        return found


@contextlib.contextmanager
def writing_no_events() -> Iterator[None]:
    """Let RecBole's trainers be made without TensorBoard files, which only one of several processes writes."""
    module: Any = importlib.import_module("recbole.trainer.trainer")
    with _ONE_AT_A_TIME:
        original, nothing = module.get_tensorboard, lambda *_, **__: None
        module.get_tensorboard = lambda _: types.SimpleNamespace(add_scalar=nothing, add_hparams=nothing)
        try:
            yield
        finally:
            module.get_tensorboard = original


@contextlib.contextmanager
def keeping_anomaly_mode() -> Iterator[None]:
    """Undo what RecBole's `sine.py` does on import: it switches on autograd's anomaly mode for the whole process.

    Every sequential model of RecBole would then train 1.7 times slower.
    """
    with _ONE_AT_A_TIME:
        before = torch.is_anomaly_enabled()
        try:
            yield
        finally:
            torch.autograd.set_detect_anomaly(before)
