"""BBQRec with one part changed at a time: the rows, and the runs that fill them."""

import difflib
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from .. import storage
from ..data import feature_sources
from ..errors import InputError
from ..evaluation import report
from . import records, study
from .runner import QUIET, Data, Execute, Planned, given_and_files, run_all
from .study import FULL, Study

MODEL = "BBQRec"

Settings = Mapping[str, Any]


class NotApplicableError(Exception):
    """A row means nothing under the given settings; the message says why."""


class Row(NamedTuple):
    """A row of the table: what it is, and the settings it changes, given those of `full`."""

    what: str
    changes: Callable[[Settings], dict[str, Any]]


def _set(needs: int = 0, **changes: Any) -> Callable[[Settings], dict[str, Any]]:
    """Fixed changes, for data sets with at least `needs` modalities."""

    def changes_of(full: Settings) -> dict[str, Any]:
        if len(modalities(full)) < needs:
            raise NotApplicableError(f"it needs {needs} modalities, found {len(modalities(full))}")
        return changes

    return changes_of


def _of_tokenizer(needs: int = 0, **changes: Any) -> Callable[[Settings], dict[str, Any]]:
    """Fixed changes of the behaviour-bound tokenizer."""

    def changes_of(full: Settings) -> dict[str, Any]:
        if full["tokenizer"] != "behavior_bind" or full["codes"] == "none":
            raise NotApplicableError("the behaviour-bound tokenizer is not used")
        if "sid_shared_codebook" in changes and full["sid_mode"] == "fused":
            raise NotApplicableError("fused signals have one codebook anyway")
        return _set(needs, **changes)(full)

    return changes_of


def _plain_tokenizer(name: str, **changes: Any) -> Callable[[Settings], dict[str, Any]]:
    """A tokenizer that sees features alone, with as many codes per item as `full` has."""

    def changes_of(full: Settings) -> dict[str, Any]:
        if not modalities(full) or full["codes"] == "none":
            raise NotApplicableError("there are no features, or no codes")
        return {"tokenizer": name, "sid_levels": full["sid_levels"] * _chains(full), **changes}

    return changes_of


def _with_codes(**changes: Any) -> Callable[[Settings], dict[str, Any]]:
    """Fixed changes of what the codes are or do."""

    def changes_of(full: Settings) -> dict[str, Any]:
        if full["codes"] == "none":
            raise NotApplicableError("there are no codes")
        if changes.get("codes") == "none" and full["scoring"] in ("codes", "generate"):
            raise NotApplicableError(f"scoring {full['scoring']} needs codes")
        return _set(int(changes.get("codes") == "none"), **changes)(full)

    return changes_of


def _without_candidate(signal: str) -> Callable[[Settings], dict[str, Any]]:
    """Candidate similarity without one of its signals."""

    def changes_of(full: Settings) -> dict[str, Any]:
        signals = full["candidate_similarity"] or []
        if signal != "behavior" and signal not in modalities(full):
            raise NotApplicableError(f"the items have no {signal}")
        left = [name for name in signals if name != signal]
        if not {*modalities(full), "behavior"} & set(left):
            raise NotApplicableError("nothing is left of the candidate similarity, see the row candidate-similarity")
        return {"candidate_similarity": left}

    return changes_of


def _only(*kept: str) -> Callable[[Settings], dict[str, Any]]:
    """Features of these modalities alone, with as many codes per item as `full` has."""

    def changes_of(full: Settings) -> dict[str, Any]:
        if len(modalities(full)) < 2:
            raise NotApplicableError("the items do not have both text and image")
        changes: dict[str, Any] = {f"{name}_encoder": None for name in ("text", "image") if name not in kept}
        chains = _chains({**full, **changes})
        codes = full["sid_levels"] * _chains(full)
        if not chains or codes % chains:
            raise NotApplicableError(f"{codes} codes per item cannot be shared by {chains} signals")
        return {**changes, "sid_levels": codes // chains}

    return changes_of


ROWS: dict[str, Row] = {
    FULL: Row("the model as it is", _set()),
    "club": Row("no CLUB bound between the specific and the behaviour part", _of_tokenizer(1, sid_club_weight=0.0)),
    "shared-codebook": Row("codebooks of its own for each signal", _of_tokenizer(1, sid_shared_codebook=False)),
    "id-signal": Row("no learned item representation z_ID among the signals", _of_tokenizer(1, sid_use_id=False)),
    "sequence-contrast": Row(
        "no contrast of histories with the next item", _of_tokenizer(sid_sequence_contrast_weight=0.0)
    ),
    "cross-contrast": Row(
        "no contrast between the signals of an item", _of_tokenizer(1, sid_cross_contrast_weight=0.0)
    ),
    "rqvae": Row("codes of an RQ-VAE, as many per item", _plain_tokenizer("rqvae", sid_learning_rate=0.001)),
    "kmeans": Row("codes of residual k-means, as many per item", _plain_tokenizer("kmeans")),
    "similarity-attention": Row("plain attention", _set(similarity_attention="off")),
    "discretisation": Row("the cosine itself in attention, no buckets", _set(similarity_attention="undiscretised")),
    "candidate-text": Row("candidate similarity without texts", _without_candidate("text")),
    "candidate-image": Row("candidate similarity without images", _without_candidate("image")),
    "candidate-behavior": Row("candidate similarity without behaviour", _without_candidate("behavior")),
    "candidate-similarity": Row("no candidate similarity", _set(candidate_similarity=[])),
    "code-embeddings": Row("no code embeddings in the item representation", _with_codes(use_code_embedding=False)),
    "features": Row("no projected features in the item representation", _set(1, use_features=False)),
    "no-codes": Row("raw features wherever quantised vectors stand, no codes", _with_codes(codes="none")),
    "random-codes": Row("random codes", _with_codes(codes="random")),
    "shuffled-codes": Row("the learned codes, dealt to other items", _with_codes(codes="shuffled")),
    "text-only": Row("no images, as many codes per item", _only("text")),
    "image-only": Row("no texts, as many codes per item", _only("image")),
    "neither": Row("neither texts nor images, as many codes per item", _only()),
}
"""All rows by name. Each changes `full` in one respect; what it is compared with is always `full`."""


def modalities(settings: Settings) -> list[str]:
    """Names of the modalities that the settings give the items."""
    return list(feature_sources.modalities(settings))


def _chains(settings: Settings) -> int:
    """How many chains of `sid_levels` codes an item's ID is made of."""
    if settings["tokenizer"] != "behavior_bind" or settings["sid_mode"] == "fused":
        return 1
    return len(modalities(settings)) + bool(settings["sid_use_id"])


def chosen_rows(names: Sequence[str]) -> list[str]:
    """Return the named rows in the order of `ROWS`, `full` among them; all where none is named.

    Raises
    ------
    InputError : there is no such row; the nearest is given.
    """
    for name in names:
        if name not in ROWS:
            near = difflib.get_close_matches(name, ROWS, n=1, cutoff=0.4)
            hint = f"did you mean {near[0]}?" if near else f"choose some of {', '.join(ROWS)}"
            raise InputError(f"--rows: found {name!r}, no row of the ablation; {hint}")
    return [name for name in ROWS if not names or name in names or name == FULL]


def changes_of(name: str, full: Settings) -> dict[str, Any]:
    """Settings that row `name` changes, given those of `full`.

    Raises
    ------
    NotApplicableError : under these settings the row would be another one, or would mean nothing.
    """
    changes = ROWS[name].changes(full)
    if name != FULL and all(full[key] == value for key, value in changes.items()):
        raise NotApplicableError("it changes nothing under these settings")
    return changes


def applicable(names: Sequence[str], full: Settings) -> tuple[dict[str, dict[str, Any]], dict[str, str]]:
    """Split rows into those that apply, with their changes, and those that do not, with the reason."""
    rows, left_out = {}, {}
    for name in names:
        try:
            rows[name] = changes_of(name, full)
        except NotApplicableError as error:
            left_out[name] = str(error)
    return rows, left_out


def ablate(
    dataset: str,
    rows: Sequence[str] = (),
    n_seeds: int = 3,
    arguments: Sequence[str] = (),
    final: bool = False,
    results: Path = Path("results"),
    execute: Execute | None = None,
) -> int:
    """Run the rows that have no record yet, screening first, and write the table after every run.

    Parameters
    ----------
    rows : names from `ROWS`; none means all.
    n_seeds : runs of each row, from the base seed upwards; the first seed of all rows comes first.
    arguments : `--key=value` settings of all rows.
    final : also judge the test split.
    results : folder of tables and records.
    execute : stands in for `quick_start.execute`.

    Returns
    -------
    Exit code: 0, or 1 where a run failed.
    """
    names = chosen_rows(rows)
    if n_seeds < 1:
        raise InputError(f"--seeds: found {n_seeds}, expected at least 1")
    given, files = _given(dataset, arguments, final)
    config = Planned(FULL, given, files).config()
    full, data = records.comparable_settings(config), Data.of(config)
    found, left_out = applicable(names, full)
    for name, reason in left_out.items():
        print(f"row {name} is left out: {reason}", file=sys.stderr)
    seeds = range(config["seed"], config["seed"] + n_seeds)
    planned = [Planned(name, {**given, **found[name], "seed": seed}, files) for seed in seeds for name in found]
    this = Study(MODEL, dataset, full, data.fingerprint, data.statistics, final)

    page = write(this, results)

    def write_table() -> None:
        nonlocal page
        page = write(this, results)

    splits = ("valid", "test") if final else ("valid",)
    failures = run_all(planned, data, records.folder_of(results, dataset), splits, write_table, execute)
    print(page)
    for title, message in failures.items():
        print(f"failed: {title}: {message}", file=sys.stderr)
    return 1 if failures else 0


def _given(dataset: str, arguments: Sequence[str], final: bool) -> tuple[dict[str, Any], list[str]]:
    """Settings of all rows, and the argument that names their files: files stand below them, as on a command line."""
    given, files = given_and_files(arguments, "an ablation")
    return {**QUIET, **given, "model": MODEL, "dataset": dataset, "final": final}, files


def remake(dataset: str, final: bool = False, results: Path = Path("results")) -> None:
    """Write table and figure again from the records alone; neither the data nor a model is needed.

    Raises
    ------
    InputError : there is no ablation of this data set among the records, or it is not clear which of several.
    """
    this = _recorded_study(dataset, final, results)
    print(write(this, results))


def _recorded_study(dataset: str, final: bool, results: Path) -> Study:
    """The study that the table on disk shows, or else the only one there are records of."""
    folder = records.folder_of(results, dataset)
    by_name: dict[str, dict[str, Study]] = {
        MODEL: {},
        FULL: {},
    }  # a leaderboard's run of the model serves as `full` too
    for name, studies in by_name.items():
        for path in sorted(folder.glob(f"{name}-*.json")):
            record = records.read(path)
            parts = (record["settings"], record["data_fingerprint"], record["data"])
            studies[record["run_key"]] = Study(MODEL, dataset, *parts, final)
    table = results / f"ablation-{dataset}.json"
    shown = json.loads(table.read_text(encoding="utf-8"))["run_key"] if table.is_file() else None
    for studies in by_name.values():
        if shown in studies:
            return studies[shown]
    found = by_name[FULL] or by_name[MODEL]
    if len(found) != 1:
        raise InputError(
            f"--table-only: found {len(found)} ablations of {dataset} in {folder}, expected one; "
            "run the one that is meant once without --table-only"
        )
    return next(iter(found.values()))


def write(this: Study, results: Path) -> str:
    """Write the table of a study as Markdown and JSON, and its figure, from the records; return the page.

    Where no run has ended well yet nothing is written.
    """
    found, left_out = applicable(list(ROWS), this.full)
    content = study.content(this, found, left_out, records.folder_of(results, this.dataset))
    if not content["splits"]:
        return "no run has a record yet"
    page = study.markdown(content, {name: row.what for name, row in ROWS.items()})
    report.write_file(results / f"{this.name}.png", study.figure(content))
    report.write_file(results / f"{this.name}.md", page)
    storage.write_json(results / f"{this.name}.json", content)
    return page
