"""The modalities that an item may have, in the order in which everything made of them lists them.

The settings of each are called after it: `<name>_encoder`, `<name>_fields`, and `<name>_folder` where it has one.
"""

from typing import NamedTuple


class Modality(NamedTuple):
    """What features of a modality may be made from, besides vectors and code columns, which serve for all of them.

    Attributes
    ----------
    model : whether a `transformers` model may encode it.
    folder : whether files in a folder may stand for the items.
    """

    model: bool = False
    folder: bool = False


MODALITIES = {
    "text": Modality(model=True),
    "image": Modality(model=True, folder=True),
    "audio": Modality(),
    "video": Modality(),
}
