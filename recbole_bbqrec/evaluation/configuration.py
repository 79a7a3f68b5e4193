"""What makes runs the same but for their seed, and how often such a configuration has been judged on test."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .. import claims, schema, storage
from ..errors import InputError
from ..modalities import MODALITIES
from ..preparation.images import images_by_token
from ..preparation.vectors import files_of
from ..settings import ADDED_LATER, FITTED_AFTER_TRAINING, candidate_signals, learning_settings

COUNTED_ONCE = {"topk": [5, 10, 20], "metrics": ["Recall", "NDCG"], "use_gpu": True}
"""Settings that stood in the key although no result depends on them: their defaults stay in it, so that records and
searches from before are found."""


def judged_parts(config: Any) -> tuple[str, ...]:
    """Parts of the data, `valid` and `test`, that the settings keep apart from training."""
    if config["train_on"] == "all":
        return ()
    split, parts = config["eval_args"]["split"], ("valid", "test")
    if config["benchmark_filename"] or not isinstance(split, dict):  # RecBole refuses what it cannot read
        return parts
    how = next(iter(split.values()), None)
    if isinstance(how, list):
        return tuple(part for part, share in zip(parts, how[1:], strict=False) if share)
    return {"valid_only": ("valid",), "test_only": ("test",)}.get(str(how), parts)


def name_of_split(settings: Mapping[str, Any]) -> str:
    """Short name of a run's split, blank for one row of each user in validation and in test.

    `TS` is by time over all users, `RS` by shares of each user's rows, both 8 : 1 : 1; whatever differs is appended.
    """
    given = settings["eval_args"]
    (how, parts), order = next(iter(given["split"].items())), given.get("order", "TO")
    if how == "LS":
        found = [] if parts == "valid_and_test" else [how, parts]
    else:
        group_by, total = str(given.get("group_by")).lower(), sum(parts)
        usual = {"TS": "none", "RS": "user"}.get(how)
        found = [how, *([group_by] if group_by != usual else [])]
        shares = [f"{part / total:.3g}" for part in parts]
        found += shares if shares != ["0.8", "0.1", "0.1"] else []
    return "-".join([*found, *([order] if order != "TO" else [])])


def comparable_settings(config: Any) -> dict[str, Any]:
    """Settings that can change a result, the seed left out: runs that share them differ by chance alone.

    An encoder that is a file or a folder on this disk has a fingerprint behind its name: of the content of a file of
    vectors, of the names and sizes of a model's files. So has a knowledge graph of files, of their content: it is no
    part of `data_fingerprint`, as only records that share that one stand on one page.
    """
    afterwards = {key: config[key] for key in FITTED_AFTER_TRAINING}
    settings = {**learning_settings(config), **afterwards}
    del settings["seed"]
    for key in (f"{modality}_encoder" for modality in MODALITIES):
        name = settings.get(key)
        if isinstance(name, str) and (path := Path(config["data_path"]) / Path(name).expanduser()).exists():
            files = [file for file in (files_of(path) if path.is_file() else sorted(path.iterdir())) if file.is_file()]
            content = {file.name: file if path.is_file() else [file.stat().st_size] for file in files}
            settings[key] = f"{name} ({storage.fingerprint(content)})"
    kind = config["MODEL_TYPE"].name.lower()  # of models of users and items as in `schema`
    if schema.reads_graph({**config.final_config_dict, schema.KIND: kind}) and config["kg"] != "codes":
        settings["kg"] = f"files ({storage.fingerprint(_atomic_files(config, 'kg', 'link'))})"
    return settings


def _atomic_files(config: Any, *kinds: str) -> dict[str, Path]:
    """The data set's files of these kinds by name."""
    folder, name = Path(config["data_path"]), config["dataset"]
    return {path.name: path for kind in kinds for path in sorted(folder.glob(f"{name}*.{kind}"))}


def data_fingerprint(config: Any) -> str:
    """Fingerprint of a data set's files as they lie on the disk, before RecBole reads them.

    Atomic files count by content, images by name and size, so that a large folder takes no minute. It is the same for
    all models and settings that read the same files, and so are the users' ids.
    """
    folder = Path(config["data_path"])
    images: dict[str, list[Any]] = {}
    if config["image_folder"] and (place := folder / Path(config["image_folder"]).expanduser()).is_dir():
        images = {token: [path.name, path.stat().st_size] for token, path in images_by_token(place).items()}
    return storage.fingerprint(_atomic_files(config, "inter", "item", "user"), images)


def run_key(settings: Mapping[str, Any], data: str) -> str:
    """Fingerprint of what makes runs the same but for their seed: `comparable_settings` and `data_fingerprint`."""
    later = {key for key, value in ADDED_LATER.items() if settings.get(key, value) == value}
    learned = {key: value for key, value in settings.items() if key not in later.union(FITTED_AFTER_TRAINING)}
    return storage.fingerprint({**COUNTED_ONCE, **learned, **_as_first_recorded(settings)}, data)


def _as_first_recorded(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of the second stage in the form under which records from before the key `second_stage` are found.

    At that time BBQRec and its controls alone had one, the linear form, and codes belonged to behaviour.
    """
    if "second_stage" not in settings:
        return {key: settings[key] for key in FITTED_AFTER_TRAINING if key in settings}
    form = schema.second_stage(settings)
    found = {key: settings[key] for key in FITTED_AFTER_TRAINING if key in settings} | {"second_stage": form}
    found["candidate_similarity"] = candidate_signals(settings)
    sizes = {key: found.pop(key, None) for key in FITTED_AFTER_TRAINING[2:]}
    if form == "gbdt":
        return found
    if "scoring" not in settings:
        return {} if form == "off" else {**found, **sizes}
    if form == "off":
        return {"candidate_similarity": [], **(dict.fromkeys(sizes, 0) if settings["scoring"] == "generate" else sizes)}
    signals = found["candidate_similarity"]
    if "behavior" in signals and ("codes" in signals or settings["codes"] == "none"):
        found["candidate_similarity"] = [name for name in signals if name != "codes"]
    elif not {"behavior", "codes"}.isdisjoint(signals):
        return {**found, **sizes}
    del found["second_stage"]
    return {**found, **sizes}


def folder_of(results: Path, dataset: str) -> Path:
    """Folder of a data set's records, and of `TimesTested`."""
    return results / "runs" / dataset


class TimesTested:
    """How often a configuration, with whatever seed, has been judged on test.

    The count is kept beside the records, in `tested/<Model>-<key>.json`, and never falls below what a record says. Make
    one before a run: a count that cannot be read or written is an `InputError` here.
    """

    def __init__(self, config: Any) -> None:
        self._key = run_key(comparable_settings(config), data_fingerprint(config))
        folder = folder_of(Path(config["results"] or "results"), config["dataset"])
        self._path = folder / "tested" / f"{config['model']}-{self._key}.json"
        self._final = config["final"]
        try:
            if self._final:
                self._path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(
                f"results: {self._path.parent} cannot be made ({error.strerror}); name another folder"
            ) from error
        self._counted()

    def after_run(self) -> int:
        """Return the count, including this run if it was judged on test."""
        if not self._final:
            return self._counted()
        with claims.alone(self._path):  # no count is lost where two runs end at once
            count = self._counted() + 1
            storage.write_json(self._path, {"times_tested": count})
        return count

    def _counted(self) -> int:
        """The largest count in the file and in the records of the key."""
        counts = [0]
        for file in (self._path, *self._path.parent.parent.glob(f"*-{self._key}.json")):
            try:
                counts.append(json.loads(file.read_text(encoding="utf-8"))["times_tested"])
            except (FileNotFoundError, NotADirectoryError):
                continue
            except (OSError, ValueError, KeyError, TypeError) as error:
                why = f"found no readable count of runs judged on test ({type(error).__name__}: {error})"
                raise InputError(f"{file}: {why}; restore the file, or delete it and run again") from error
        return max(counts)
