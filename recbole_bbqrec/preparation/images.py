"""Image files as they come: decoded to RGB where they can be used, a reason where not."""

import re
import unicodedata
import warnings
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np

from ..errors import InputError

# Where an item has several files, the first of these endings counts.
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
MAX_PIXELS = 64_000_000  # larger images are left out: a few kilobytes can unpack to gigabytes
# Smaller or longer images are no pictures (tracking pixels, rules); models would blow them up to enormous strips.
MIN_SIDE, MAX_ASPECT = 4, 20


def require_pillow() -> Any:
    """Return `PIL`, or raise an `InputError` that says how to install it."""
    try:
        import PIL.Image
        import PIL.ImageOps
    except ImportError as error:
        remedy = "which is not installed; pip install 'recbole-bbqrec[images]'"
        raise InputError(f"image_folder: reading images needs pillow, {remedy}") from error
    return PIL


def file_stem(token: str) -> str:
    """Return the file name without ending for an item token: what no file name may hold becomes %XX."""
    return re.sub(r'[%/\\:*?"<>|\x00-\x1f\x7f]|^\.', lambda found: f"%{ord(found[0]):02X}", token)


def token_of(stem: str) -> str:
    """Return the item token of a name that `file_stem` can make; any other (`50%`, `a%20b`) stands for itself."""
    token = unquote(stem)
    return token if file_stem(token) == stem else stem


def images_by_token(folder: Path) -> dict[str, Path]:
    """Map item token -> image file for the files `<item token>.jpg` (.jpeg, .png, .webp) of `folder`.

    A file called exactly as the token comes before one with %XX, then the first of `SUFFIXES` counts. A name with
    accents also stands for the token whose accents are characters of their own, as macOS writes them, and the other way
    round. A token never becomes a part of a path, so that one such as `../x` reaches no file outside.
    """
    if not folder.is_dir():
        expected = "image_folder must name the folder with the images (<item token>.jpg), relative to the data set"
        raise InputError(f"{folder}: no such folder; {expected}; set image_encoder to ~ to go without images")
    files = [path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES and path.is_file()]
    # Later entries win, so the most wanted come last; the name decides between `1.jpg` and `1.JPG`.
    files.sort(key=lambda path: (token_of(path.stem) == path.stem, -SUFFIXES.index(path.suffix.lower()), path.name))
    found = {token_of(path.stem): path for path in files}
    forms = {unicodedata.normalize(form, token): path for token, path in found.items() for form in ("NFC", "NFD")}
    return forms | found


def decode(path: Path) -> tuple[Any, str]:
    """Return `(RGB image, "")`, or, for what no model could use, `(None, "kind of reason: what was found")`."""
    pillow = require_pillow()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # pillow warns about sizes, which are checked here
            with pillow.Image.open(path, formats=("JPEG", "PNG", "WEBP")) as image:
                width, height = image.size
                if width * height > MAX_PIXELS:
                    return None, f"too large: {width} x {height} pixels, more than {MAX_PIXELS}"
                if min(width, height) < MIN_SIDE or max(width, height) > MAX_ASPECT * min(width, height):
                    return None, f"no picture: {width} x {height} pixels"
                image.load()
                return _rgb(pillow.ImageOps.exif_transpose(image), pillow), ""
    except Exception as error:  # pillow raises all kinds on broken files, and one image must not end the run
        return None, f"{type(error).__name__}: {' '.join(str(error).split()).replace(str(path), 'the file')[:160]}"


def _rgb(image: Any, pillow: Any) -> Any:
    """Convert any mode to RGB, transparency on white."""
    if image.mode.startswith("I"):  # 16 bits a pixel: pillow's own conversion cuts at 255 instead of scaling
        scaled = np.clip(np.asarray(image).astype(np.int64), 0, 65535) // 256
        return pillow.Image.fromarray(scaled.astype(np.uint8)).convert("RGB")
    if "A" in image.mode or "transparency" in image.info:
        image = image.convert("RGBA")
        ground = pillow.Image.new("RGBA", image.size, "white")
        return pillow.Image.alpha_composite(ground, image).convert("RGB")
    return image.convert("RGB")
