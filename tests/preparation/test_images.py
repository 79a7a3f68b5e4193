"""Image files as they come: every mode becomes RGB, everything else gets a reason."""

import struct
import unicodedata
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from recbole_bbqrec.errors import InputError
from recbole_bbqrec.preparation import images
from recbole_bbqrec.preparation.images import decode, file_stem, images_by_token


def corner(path: Path) -> tuple[int, ...]:
    image, reason = decode(path)
    assert image is not None, reason
    assert image.mode == "RGB"
    return image.getpixel((0, 0))


@pytest.mark.parametrize(
    ("mode", "colour", "ending", "expected"),
    [
        ("RGB", (255, 0, 0), "png", (255, 0, 0)),
        ("L", 100, "png", (100, 100, 100)),
        ("1", 1, "png", (255, 255, 255)),
        ("RGBA", (255, 0, 0, 0), "png", (255, 255, 255)),
        ("RGBA", (0, 0, 255, 255), "webp", (0, 0, 255)),
        ("LA", (50, 255), "png", (50, 50, 50)),
        ("CMYK", (0, 0, 0, 0), "jpg", (255, 255, 255)),
        ("P", 7, "png", None),
        ("I;16", 100 * 256, "png", (100, 100, 100)),
    ],
)
def test_every_mode_becomes_rgb(tmp_path: Path, mode: str, colour: object, ending: str, expected: tuple | None) -> None:
    path = tmp_path / f"x.{ending}"
    image = Image.new(mode, (8, 8), colour)  # type: ignore[arg-type]
    image.save(path, **({"lossless": True} if ending == "webp" else {}))
    found = corner(path)
    assert expected is None or found == expected


def test_transparent_palette_and_rotation(tmp_path: Path) -> None:
    image = Image.new("P", (8, 8), 0)
    image.putpalette([255, 0, 0] * 256)
    image.save(tmp_path / "p.png", transparency=0)
    assert corner(tmp_path / "p.png") == (255, 255, 255)
    wide = Image.new("RGB", (16, 8), "red")
    exif = Image.Exif()
    exif[0x0112] = 6
    wide.save(tmp_path / "r.jpg", exif=exif)
    assert decode(tmp_path / "r.jpg")[0].size == (8, 16)


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size and holds nothing."""
    parts = (b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0), b"IDAT")
    chunks = [struct.pack(">I", len(part) - 4) + part + struct.pack(">I", zlib.crc32(part)) for part in parts]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def test_what_is_no_picture_gets_a_reason(tmp_path: Path) -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8))
    noise.save(tmp_path / "good.jpg")
    whole = (tmp_path / "good.jpg").read_bytes()
    Image.new("RGB", (1, 1)).save(tmp_path / "pixel.png")
    Image.new("RGB", (8, 400)).save(tmp_path / "rule.png")
    noise.save(tmp_path / "gif.gif")
    (tmp_path / "gif.gif").rename(tmp_path / "gif.jpg")
    contents = {
        "empty.jpg": b"",
        "html.jpg": b"<html>not found</html>",
        "cut.jpg": whole[: len(whole) // 2],
        "bomb.png": png_header(60000, 60000),
        "huge.png": png_header(9000, 9000),
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    expected = {
        "empty.jpg": "Unidentified",
        "html.jpg": "Unidentified",
        "cut.jpg": "truncated",
        "bomb.png": "DecompressionBomb",
        "huge.png": "too large: 9000 x 9000 pixels, more than 64000000",
        "pixel.png": "no picture: 1 x 1 pixels",
        "rule.png": "no picture",
        "gif.jpg": "Unidentified",
        "gone.jpg": "FileNotFound",
    }
    for name, reason in expected.items():
        image, found = decode(tmp_path / name)
        assert image is None and reason in found and "\n" not in found, name


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_damage_never_raises(tmp_path: Path, data: st.DataObject) -> None:
    for ending in ("jpg", "png", "webp"):
        path = tmp_path / f"x.{ending}"
        Image.new("RGB", (16, 16), "red").save(path)
        content = bytearray(path.read_bytes())
        for _ in range(3):
            content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
        path.write_bytes(bytes(content[: data.draw(st.integers(0, len(content)))]))
        image, reason = decode(path)
        assert (image is None) == bool(reason)


def test_tokens_are_looked_up_and_never_become_paths(tmp_path: Path) -> None:
    folder = tmp_path / "images"
    (folder / "folder.jpg").mkdir(parents=True)
    (tmp_path / "secret.jpg").write_bytes(b"x")
    for name in ("a.jpg", "a.png", "a.JPG", "b.c.jpeg", "d.webp", "e.txt", "..jpg"):
        (folder / name).write_bytes(b"x")
    found = images_by_token(folder)
    assert {token: path.name for token, path in found.items()} == {
        "a": "a.jpg",
        "b.c": "b.c.jpeg",
        "d": "d.webp",
        ".": "..jpg",
    }
    for trick in ("../secret", "..", "/etc/passwd", str(tmp_path / "secret"), "images/a", "a\0"):
        assert trick not in found
    with pytest.raises(InputError, match=r"no such folder.*image_folder"):
        images_by_token(tmp_path / "none")


def test_names_with_percent_signs(tmp_path: Path) -> None:
    for name in (
        "a%2Fb.jpg",
        "50%25.jpg",
        "60%.jpg",
        "a%20b.jpg",
        "c%2fd.jpg",
        "%2Ehidden.jpg",
        "%41.jpg",
        "%C3%A9.jpg",
    ):
        (tmp_path / name).write_bytes(b"x")
    assert {token: path.name for token, path in images_by_token(tmp_path).items()} == {
        "a/b": "a%2Fb.jpg",
        "50%": "50%25.jpg",
        ".hidden": "%2Ehidden.jpg",
        # no names that file_stem would give: they mean what they say
        "60%": "60%.jpg",
        "a%20b": "a%20b.jpg",
        "c%2fd": "c%2fd.jpg",
        "%41": "%41.jpg",
        "%C3%A9": "%C3%A9.jpg",
    }


def test_the_plain_name_comes_before_the_one_with_percent_signs(tmp_path: Path) -> None:
    for name in ("a:b.webp", "a%3Ab.jpg", "9%25.jpeg", "9%.png", "9%.jpg", "c%3Ad.png", "c%3Ad.jpg"):
        (tmp_path / name).write_bytes(b"x")
    found = {token: path.name for token, path in images_by_token(tmp_path).items()}
    assert found == {"a:b": "a:b.webp", "9%": "9%.jpg", "c:d": "c%3Ad.jpg"}


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.text(st.characters(exclude_categories=["Cs"], max_codepoint=0x2FF), min_size=1, max_size=20))
def test_an_image_named_after_its_token_is_found(tmp_path: Path, token: str) -> None:
    path = tmp_path / f"{file_stem(token)}.jpg"
    path.write_bytes(b"x")
    try:
        found = images_by_token(tmp_path)
        assert found[token] == path and {*found.values()} == {path}
    finally:
        path.unlink()


def test_accents_match_in_both_forms(tmp_path: Path) -> None:
    composed, apart = (unicodedata.normalize(form, "café") for form in ("NFC", "NFD"))
    for name in (composed, apart):
        path = tmp_path / f"{name}.png"
        path.write_bytes(b"x")
        assert images_by_token(tmp_path)[composed] == images_by_token(tmp_path)[apart] == path
        path.unlink()
    for name in (composed, apart):  # two items, each with a file of its own
        (tmp_path / f"{name}.png").write_bytes(b"x")
    assert [images_by_token(tmp_path)[name].stem for name in (composed, apart)] == [composed, apart]


def test_limits_are_sane() -> None:
    assert images.MIN_SIDE > 3, "a side of 3 could be taken for the colour channels"
