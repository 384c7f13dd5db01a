"""Names of files and classes as texts: they may be no UTF-8, and have line breaks in them."""

# They print nothing themselves, and belong to words of Persian and of languages of India.
_JOINERS = "\u200c\u200d"


def printable(name: str) -> str:
    """Returns a name in one line of valid text: what does not belong there is escaped."""
    valid = name.encode("utf-8", "backslashreplace").decode("utf-8")
    return "".join(
        c if c.isprintable() or c in _JOINERS else c.encode("unicode_escape").decode()
        for c in valid
    )
