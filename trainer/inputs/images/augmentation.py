"""Random choices for training examples, made in NumPy from (seed, time, example) alone.

The graph in `pixels` carries them out, so that the stream of examples is the same however many
threads or workers make it.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

_ASPECT_RANGE = (
    3 / 4,
    4 / 3,
)  # Width over height of a random crop (arXiv:1409.4842, section 6).
_CROP_ATTEMPTS = 10
SHIFT_FRACTION = 1 / 16  # 2 of 32 pixels.
MIXTURE_RANDOMS = 4
CROP_RANDOMS = 2 * _CROP_ATTEMPTS + 2
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def _mix(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Spreads 64 bits over 64 bits, by the output function of SplitMix64."""
    values = (values ^ values >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ values >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
    return values ^ values >> np.uint64(31)


def uniforms(
    seed: int, times: npt.NDArray[Any], examples: npt.NDArray[Any], count: int
) -> npt.NDArray[Any]:
    """Draws random numbers that depend on (seed, time, example) alone.

    Args:
      seed: the seed of the run.
      times, examples: which time each example comes, and its number: int64 [n]; see
        `order.EpochOrder.examples_at`.
      count: how many numbers to draw for each example.

    Returns:
      float64 [n, count] in [0, 1).
    """
    key = _mix(np.array([seed], np.uint64) + _GOLDEN)
    for part in (times, examples):
        key = _mix((key ^ part.astype(np.uint64)) + _GOLDEN)
    counters = key[:, None] + _GOLDEN * np.arange(1, count + 1, dtype=np.uint64)
    return (_mix(counters) >> np.uint64(11)) * 2.0**-53


def random_crops(
    heights: npt.NDArray[Any],
    widths: npt.NDArray[Any],
    randoms: npt.NDArray[Any],
    *,
    min_area: float,
) -> npt.NDArray[Any]:
    """Chooses windows of random area, aspect and place: the first of ten attempts that fits.

    Args:
      heights, widths: the sizes of the images: int64 [n], pixels.
      randoms: the random numbers to use: float64 [n, CROP_RANDOMS] in [0, 1).
      min_area: the smallest share of an image's area; the largest is 1.

    Returns:
      Top, left, height and width of each window: int32 [n, 4].
    """
    shares = min_area + (1 - min_area) * randoms[:, :_CROP_ATTEMPTS]
    areas = shares * (heights * widths)[:, None]
    low, high = np.log(_ASPECT_RANGE)
    aspects = np.exp(low + (high - low) * randoms[:, _CROP_ATTEMPTS : 2 * _CROP_ATTEMPTS])
    crop_widths = np.rint(np.sqrt(areas * aspects))
    crop_heights = np.rint(np.sqrt(areas / aspects))
    fits = (crop_widths <= widths[:, None]) & (crop_heights <= heights[:, None])
    fits &= (crop_widths >= 1) & (crop_heights >= 1)
    first = (np.arange(len(heights)), np.argmax(fits, axis=1))
    # In a very long image no attempt may fit: then the largest window of an allowed aspect.
    narrow, wide = _ASPECT_RANGE
    crop_width = np.where(
        fits[first], crop_widths[first], np.minimum(widths, np.rint(heights * wide))
    )
    crop_height = np.where(
        fits[first], crop_heights[first], np.minimum(heights, np.rint(widths / narrow))
    )
    top = np.floor(randoms[:, -2] * (heights - crop_height + 1))
    left = np.floor(randoms[:, -1] * (widths - crop_width + 1))
    return np.stack([top, left, crop_height, crop_width], axis=1).astype(np.int32)


def centre_crops(
    heights: npt.NDArray[Any], widths: npt.NDArray[Any], *, fraction: float
) -> npt.NDArray[Any]:
    """Returns square windows in the middle, `fraction` of the shorter side wide: int32 [n, 4]."""
    side = np.maximum(1, np.rint(np.minimum(heights, widths) * fraction))
    top, left = (heights - side) // 2, (widths - side) // 2
    return np.stack([top, left, side, side], axis=1).astype(np.int32)


def mixtures(
    randoms: npt.NDArray[Any], *, mixup: float, cutmix: float, size: int
) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """Chooses how much of each example stays when it is mixed with another one.

    Args:
      randoms: the random numbers to use: float64 [n, MIXTURE_RANDOMS] in [0, 1).
      mixup, cutmix: the alpha of each method's Beta(alpha, alpha). 0: not used.
      size: the height and width of the images, pixels.

    Returns:
      (shares, boxes), float32 [n] and int32 [n, 4], as `pipeline.Batch` has them.
    """
    shares = np.ones(len(randoms), np.float32)
    boxes = np.zeros((len(randoms), 4), np.int32)
    if not mixup and not cutmix:
        return shares, boxes
    for row, (choice, draw, *centre) in enumerate(randoms):
        cuts = cutmix > 0 and (mixup == 0 or choice < 0.5)
        alpha = cutmix if cuts else mixup
        share = np.random.Generator(np.random.Philox(key=int(draw * 2**53))).beta(alpha, alpha)
        if cuts:
            boxes[row] = _cut_box(share, np.array(centre), size)
            share = 1 - float(boxes[row, 2] * boxes[row, 3]) / size**2
        shares[row] = share
    return shares, boxes


def _cut_box(share: float, centre: npt.NDArray[Any], size: int) -> tuple[int, int, int, int]:
    """Returns a box of about 1 - share of the image, cut at its borders.

    Args:
      share: the share of the image outside of the box.
      centre: the centre of the box: float64 [2] in [0, 1), as shares of the height and width.
      size: the height and width of the image, pixels.

    Returns:
      Top, left, height and width of the box, pixels.
    """
    half = round(size * (1 - share) ** 0.5) // 2
    middle = np.floor(centre * size).astype(int)
    (top, left), (bottom, right) = np.clip([middle - half, middle + half], 0, size)
    return int(top), int(left), int(bottom - top), int(right - left)
