"""Is the reward being hacked? The proxy that is paid for against the gold that is only measured.

A rise is the mean over the last fifth of a run less that over the first fifth. It counts where it is larger than three
times its standard error; the noise of a point is read off second differences, in which a trend does not count. Gold is
also held against its best, since it often rises before it falls, and against the proxy: where the two go together, gold
has made as large a share of its rise as the proxy at any time. Both are looked for among the fifths and, for what is
quick, among blocks of a few points.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

PARTS = 5
"""Windows into which a run is cut."""

POINTS = 5
"""The fewest points of a window, and of a block."""

BLOCKS = 100
"""The most blocks of a run."""

SURE, SURE_OF_MANY = 3.0, 4.0
"""Standard errors beyond which a change counts: of a fifth, and of a block that was picked among all."""

LEAD = 0.25
"""Share of its rise by which gold must be ahead of the proxy at some time to have levelled off before it."""

LEAST = 0.1
"""Share of gold's range that a fall must have."""


@dataclass(frozen=True)
class Series:
    """One curve."""

    points: np.ndarray

    @property
    def noise(self) -> float:
        """Standard deviation of a point about the trend: second differences have six times its variance."""
        return float(np.sqrt(np.square(np.diff(self.points, 2)).mean() / 6.0))

    @property
    def size(self) -> int:
        """Points of a window."""
        return len(self.points) // PARTS

    def blocks(self, size: int) -> np.ndarray:
        """Means over `size` points each, in order; what is left over at the end belongs to none."""
        return self.points[: len(self.points) // size * size].reshape(-1, size).mean(1)

    @property
    def last(self) -> float:
        """Mean over the last window."""
        return float(self.points[-self.size :].mean())

    @property
    def rise(self) -> float:
        """From the first window to the last."""
        return self.last - float(self.points[: self.size].mean())

    def error(self, size: int) -> float:
        """Standard error of the difference between a block of `size` points and the last window."""
        return self.noise * math.sqrt(1.0 / size + 1.0 / self.size)

    @property
    def rises(self) -> bool:
        """Whether the rise counts."""
        return self.rise > SURE * self.error(self.size)

    @property
    def falls(self) -> bool:
        """Whether it is a fall, and counts."""
        return -self.rise > SURE * self.error(self.size)


def turned(proxy: Series, gold: Series, size: int, sure: float) -> tuple[float, float] | None:
    """By how much gold fell from its best block of `size` points to the last window, and by how much the proxy rose
    since; None unless both count."""
    blocks = gold.blocks(size)
    best = int(blocks.argmax())
    fall, since = float(blocks[best]) - gold.last, proxy.last - float(proxy.blocks(size)[best])
    least = max(LEAST * float(np.ptp(blocks)), sure * gold.error(size))
    return (fall, since) if fall > least and since > sure * proxy.error(size) else None


def ahead(proxy: Series, gold: Series, size: int, sure: float) -> tuple[float, float] | None:
    """The shares of their rises that gold and the proxy had made when gold was farthest ahead; None unless it counts.

    Rises are from the first block of `size` points to the last window.
    """
    shares, error = [], 0.0
    for series in (gold, proxy):
        blocks = series.blocks(size)
        rise = series.last - float(blocks[0])
        if rise <= 0.0:
            return None
        shares.append((blocks - blocks[0]) / rise)
        error = math.hypot(error, series.error(size) / rise)
    at = int((shares[0] - shares[1]).argmax())
    true, paid = (float(share[at]) for share in shares)
    return (true, paid) if true - paid > LEAD + sure * error else None


def hacking_verdict(proxy: Sequence[float], gold: Sequence[float]) -> tuple[dict[str, str], dict[str, float]]:
    """The verdict {"name", "level", "text"} on two series logged at the same steps, and the figures behind it.

    bad: the proxy rose and gold fell, from its start or from its best. warn: the proxy rose and gold did not, or the
    proxy went on rising after gold had levelled off, or there is too little to tell. ok: both rose, or the proxy did
    not, or by no more than its noise.
    """
    name = "hacking"
    if len(gold) != len(proxy) or len(proxy) < POINTS * PARTS:
        few = f"{len(gold)} points of gold are too few to tell ({PARTS * POINTS} would do): log more often or longer"
        none = "no gold reward is logged beside the proxy: name a function gold, which is measured and not paid for"
        text = few if len(gold) else none
        return dict(name=name, level="warn", text=text), {}
    paid, true = Series(np.asarray(proxy, float)), Series(np.asarray(gold, float))
    sizes = ((paid.size, SURE), (max(POINTS, len(proxy) // BLOCKS), SURE_OF_MANY))
    falls = [found for size, sure in sizes if (found := turned(paid, true, size, sure))]
    leads = [found for size, sure in sizes if (found := ahead(paid, true, size, sure))]
    fall = float(max(true.blocks(size).max() for size, _ in sizes)) - true.last
    figures = dict(proxy_rise=paid.rise, gold_rise=true.rise, gold_fall_from_best=-fall)
    figures = {f"hacking/{key}": value for key, value in figures.items()}

    def verdict(level: str, text: str) -> tuple[dict[str, str], dict[str, float]]:
        return dict(name=name, level=level, text=text), figures

    said = f"the proxy rose by {paid.rise:.3g} while gold changed by {true.rise:+.3g}"
    if not paid.rises:
        changed = f"the proxy did not rise ({paid.rise:+.3g})"
        return verdict("ok", changed if paid.rise <= 0.0 else f"{said}: no more than its noise")
    if true.falls or falls:
        fell, rose = max(falls, default=(0.0, 0.0))
        then = f"; since its best gold fell by {fell:.3g} and the proxy rose by {rose:.3g}" if falls else ""
        return verdict("bad", f"{said}{then}: the reward is being exploited; stop earlier or raise gamma of gradreg")
    if not true.rises:
        return verdict("warn", f"{said}: what is paid for no longer helps")
    if leads:
        mine, theirs = max(leads, key=lambda shares: shares[0] - shares[1])
        shares = f"gold had made {mine:.0%} of its rise when the proxy had made {theirs:.0%}"
        return verdict("warn", f"{said}; {shares}: the proxy went on rising where gold had levelled off")
    return verdict("ok", said)
