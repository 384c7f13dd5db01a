"""Names and errors as one line of text: names may be no UTF-8, and have line breaks in them."""

# They print nothing themselves, and belong to words of Persian and of languages of India.
_JOINERS = "\u200c\u200d"
_HEADING = "Graph execution error:"


def printable(name: str) -> str:
    """Returns a name in one line of valid text: what does not belong there is escaped."""
    valid = name.encode("utf-8", "backslashreplace").decode("utf-8")
    return "".join(
        c if c.isprintable() or c in _JOINERS else c.encode("unicode_escape").decode()
        for c in valid
    )


def first_line(error: BaseException | str) -> str:
    """Returns the first line of an error's message that says something, else its type's name.

    TensorFlow's begin with a heading and the place in Python where the operation was created.
    """
    _, node, rest = str(error).rpartition("\nNode: ")
    lines = rest.splitlines()[1:] if node else str(error).splitlines()
    told = (line.strip() for line in lines if line.strip() and line.strip() != _HEADING)
    return next(told, "" if isinstance(error, str) else type(error).__name__)
