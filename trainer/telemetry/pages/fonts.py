"""Fonts for pictures, whose names may have letters of any language.

Pillow's own font has little more than ASCII. A text with other letters is drawn with matplotlib's
font where that is installed, else with one of the system's; what none has is escaped.
"""

import contextlib
import functools
import importlib.util
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from PIL import ImageFont

_PIXELS = 10
# It is no character, and never will be: each font draws what it draws for those that it lacks.
_NO_CHARACTER = "\U0010ffff"
_SEARCH_SEC = 10.0
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


class Line(NamedTuple):
    """A line of text as it can be drawn.

    Attributes:
      text: the text; what its font lacks is escaped.
      font: the font.
    """

    text: str
    font: Font

    @property
    def pixels(self) -> int:
        """The width."""
        return round(self.font.getlength(self.text))


class FontFile(NamedTuple):
    """A font of the system.

    Attributes:
      path: the file.
      face: the number of the font among those of the file.
    """

    path: str
    face: int


class _Fonts:
    """The fonts that have been found up to now, best first."""

    def __init__(self) -> None:
        self._fonts: list[Font] = [ImageFont.load_default(_PIXELS)]
        path = _find_matplotlibs()
        if path is not None and path.exists():
            self._fonts.append(ImageFont.truetype(str(path), _PIXELS))
        self._sought: set[str] = set()

    def choose(self, text: str) -> tuple[Font, set[str]]:
        """Returns the font that lacks the fewest characters of a text, and these."""
        font = min(self._fonts, key=lambda font: len(_lacking(font, text)))
        lacking = _lacking(font, text)
        if lacking <= self._sought:
            return font, lacking
        self._sought |= lacking  # So that each is sought once, found or not.
        found = find_in_system(text)
        if found is not None:
            with contextlib.suppress(OSError):  # A font of pixels has one size.
                other = ImageFont.truetype(found.path, _PIXELS, found.face)
                if len(_lacking(other, text)) < len(lacking):
                    self._fonts.append(other)
        return self.choose(text)


_create_fonts = functools.cache(_Fonts)


def _find_matplotlibs() -> Path | None:
    """Returns where matplotlib has its font, without loading it; None: it is not installed."""
    spec = importlib.util.find_spec("matplotlib")
    if spec is None or spec.origin is None:
        return None
    return Path(spec.origin).parent / "mpl-data" / "fonts" / "ttf" / "DejaVuSans.ttf"


def find_in_system(characters: Iterable[str]) -> FontFile | None:
    """Asks fontconfig, if it is there, for the font that has the most of some characters."""
    codes = " ".join(f"{ord(character):x}" for character in sorted(set(characters)))
    command = ["fc-match", "--format=%{index} %{file}", f":charset={codes}"]
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_SEARCH_SEC,
            check=True,
        )
        face, _, path = done.stdout.decode(errors="surrogateescape").partition(" ")
        return FontFile(path, int(face))
    except (OSError, subprocess.SubprocessError, ValueError):
        return None


@functools.cache
def _has(font: Font, character: str) -> bool:
    if character == " ":  # As what some fonts draw for characters that they lack.
        return True
    drawn, box = font.getmask(character), font.getmask(_NO_CHARACTER)
    return drawn.size != box.size or bytes(drawn) != bytes(box)


def _lacking(font: Font, text: str) -> set[str]:
    return {character for character in set(text) if not _has(font, character)}


def escape(text: str, lacking: Iterable[str]) -> str:
    r"""Returns a text with some of its characters as escapes, such as \u732b."""
    codes = {ord(c): c.encode("unicode_escape").decode() for c in lacking}
    return text.translate(codes)


def fit(text: str, pixels: int, *, keeps_end: bool = False) -> Line:
    """Returns a text as it can be drawn within some width: as much of it as there is room for.

    Args:
      text: the text, in one line.
      pixels: the width.
      keeps_end: whether the start is left out, rather than the end, where it is too long.
    """
    font, lacking = _create_fonts().choose(text + "…")
    whole, more = escape(text, lacking), escape("…", lacking)
    line = Line(whole, font)
    for length in range(len(whole) - 1, 0, -1):
        if line.pixels <= pixels:
            break
        line = Line(more + whole[-length:] if keeps_end else whole[:length] + more, font)
    return line
