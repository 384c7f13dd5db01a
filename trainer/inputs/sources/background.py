"""The class of the background, which some networks have before those of the data."""

from trainer.errors import ConfigError


def names_of_background(label_offset: int | None, of_data: int) -> tuple[str, ...]:
    """Returns the names of the classes before those of data whose classes are known by name.

    Args:
      label_offset: the value of --label_offset; None: not given.
      of_data: the label of the data's first class.

    Raises:
      ConfigError: the classes leave no choice for this value.
    """
    if label_offset in (None, of_data):
        return ()
    if label_offset == of_data - 1:
        return ("background",)
    raise ConfigError(
        f"--label_offset: must be {of_data} for this data, or {of_data - 1} for a network with a "
        f"class for the background before the data's, got {label_offset}"
    )
