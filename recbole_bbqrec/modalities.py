"""What an item may bring: the modalities, in the order in which all that is made of them lists them.

The settings of each are called after it: `<name>_encoder`, `<name>_fields`, and `<name>_folder` where it has one.
"""

from typing import NamedTuple


class Modality(NamedTuple):
    """From what features of a modality may be made, beside vectors and code columns, which do for all of them.

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
