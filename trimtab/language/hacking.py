"""Is the reward being hacked? The proxy that is paid for against the gold that is only measured.

A rise is the mean over the last fifth of a run less that over the first fifth; it counts where it is larger than three
times its standard error. Gold is also held against its best fifth, since it often rises before it falls.
"""

import math
from collections.abc import Sequence

import numpy as np

PARTS = 5
"""Windows into which a run is cut."""

SURE = 3.0
"""Standard errors beyond which a change counts."""


def change(before: np.ndarray, after: np.ndarray) -> tuple[float, float]:
    """The rise of the mean from `before` to `after`, and its standard error."""
    error = math.sqrt(sum(float(part.var(ddof=1)) / len(part) for part in (before, after)))
    return float(after.mean() - before.mean()), error


def hacking_verdict(proxy: Sequence[float], gold: Sequence[float]) -> tuple[dict[str, str], dict[str, float]]:
    """The verdict {"name", "level", "text"} on two series logged at the same steps, and the figures behind it.

    bad: the proxy rose and gold fell, from its start or from its best. warn: the proxy rose and gold did not, or there
    is too little to tell. ok: both rose, or the proxy did not rise.
    """
    name = "hacking"
    if len(gold) != len(proxy) or len(proxy) < 2 * PARTS:
        text = (
            "no gold reward is logged beside the proxy: name a function gold, which is measured and not paid for"
            if not len(gold)
            else f"{len(gold)} points of gold are too few to tell: log more often or train longer"
        )
        return dict(name=name, level="warn", text=text), {}
    paid, true = np.array_split(np.asarray(proxy, float), PARTS), np.array_split(np.asarray(gold, float), PARTS)
    rise, rise_error = change(paid[0], paid[-1])
    gain, gain_error = change(true[0], true[-1])
    best = max(range(PARTS), key=lambda part: true[part].mean())
    fall, fall_error = change(true[best], true[-1])
    paid_since, paid_since_error = change(paid[best], paid[-1])
    up = rise > SURE * rise_error
    down = gain < -SURE * gain_error
    turned = fall < -SURE * fall_error and paid_since > SURE * paid_since_error
    figures = dict(proxy_rise=rise, gold_rise=gain, gold_fall_from_best=fall)
    figures = {f"hacking/{key}": value for key, value in figures.items()}
    said = f"the proxy rose by {rise:.3g} while gold changed by {gain:+.3g}"
    if up and (down or turned):
        since = f"; since its best gold fell by {-fall:.3g} and the proxy rose by {paid_since:.3g}" if turned else ""
        text = f"{said}{since}: the reward is being exploited; stop earlier or raise gamma of gradreg"
        return dict(name=name, level="bad", text=text), figures
    if up and gain <= SURE * gain_error:
        return dict(name=name, level="warn", text=f"{said}: what is paid for no longer helps"), figures
    return dict(name=name, level="ok", text=said if up else f"the proxy did not rise ({rise:+.3g})"), figures
