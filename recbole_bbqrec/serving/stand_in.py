"""What models ask of a data set while they are built, kept for where there is none: nothing of any user but a count."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from recbole.data.interaction import Interaction
from recbole.utils import FeatureType

from .. import storage
from ..model.catalogue import Catalogue
from ..model.protocol import NeedsDataError

STAND_IN = "stand_in"
_ITEMS, _VECTORS = "item.", "vectors."


def save_stand_in(path: Path, dataset: Any) -> None:
    """Keep what RecBole's own models ask for: sizes and types of columns, the items' columns, preloaded vectors."""
    tensors = {_ITEMS + name: column for name, column in dataset.get_item_feature().interaction.items()}
    preloaded = dataset.config["preload_weight"] or ()
    vectors = {_VECTORS + name: torch.from_numpy(dataset.get_preload_weight(name)) for name in preloaded}
    types, tokens = dataset.field2type, dataset.field2id_token
    counted = [
        name for name, kind in types.items() if kind in (FeatureType.FLOAT, FeatureType.FLOAT_SEQ) or name in tokens
    ]
    header = {
        "uid_field": dataset.uid_field,
        "types": {name: kind.value for name, kind in types.items()},
        "sizes": {name: int(dataset.num(name)) for name in counted},
        "lengths": {name: np.asarray(length).tolist() for name, length in dataset.field2seqlen.items()},
    }
    storage.save(path, STAND_IN, {**tensors, **vectors}, header)


class StandIn:
    """A data set as models see it in their constructors: the catalogue, and of `save_stand_in` what there is.

    A `NeedsDataError` says what else a model has asked for.
    """

    train_sequences = None  # what was measured on them comes with the weights

    def __init__(self, settings: Any, catalogue: Catalogue, path: Path) -> None:
        self.config, self.catalogue, self.iid_field = settings, catalogue, settings["ITEM_ID_FIELD"]
        self._sizes, self._items, self._vectors = {self.iid_field: len(catalogue.tokens)}, {}, {}
        if path.is_file():
            tensors, header = storage.load(path, STAND_IN)
            self.uid_field, self.field2seqlen = header["uid_field"], header["lengths"]
            self.field2type = {name: FeatureType(kind) for name, kind in header["types"].items()}
            self._sizes = {**header["sizes"], **self._sizes}
            self._items, self._vectors = (
                {name.removeprefix(kind): part for name, part in tensors.items() if name.startswith(kind)}
                for kind in (_ITEMS, _VECTORS)
            )
            # FEARec looks for training rows of the same item; nothing is trained here.
            self.inter_feat = Interaction({self.iid_field: torch.zeros(0, dtype=torch.long)})

    def num(self, field: str) -> int:
        if field not in self._sizes:
            raise NeedsDataError(f"number of {field}")
        return self._sizes[field]

    @property
    def user_num(self) -> int:
        return self.num(self.uid_field)

    @property
    def item_num(self) -> int:
        return self.num(self.iid_field)

    def get_item_feature(self) -> Interaction:
        return Interaction(self._items)

    def get_user_feature(self) -> Interaction:
        raise NeedsDataError("columns of users")

    def get_preload_weight(self, field: str) -> Any:
        return self._vectors[field].numpy()

    def __getattr__(self, name: str) -> Any:
        raise NeedsDataError(name)
