"""The page of a report: plots as inline SVG, tables, verdicts, videos, in one HTML file that needs nothing else."""

import base64
import io
import itertools
import json
import math
import os
import re
from collections.abc import Callable, Sequence
from html import escape
from typing import Any

import numpy as np

from trimtab.run.results import MAX_POINTS, Run, Series, Task, as_series, finite, thin, verdicts
from trimtab.run.statistics import Estimate

# Colours that stand in a drawing for variables of the style sheet, so that one drawing suits a light and a dark page.
VARIABLES = {"#010203": "var(--ink)", "#010204": "var(--muted)", "#010205": "var(--line)"}
INK, MUTED, LINE = VARIABLES
SMALL_POINTS = 80  # of a line in a small plot
MAX_VIDEOS, MAX_VIDEO_BYTES = 4, 12_000_000  # of a group, of one video: the page must still open at once
SECTIONS = {
    "train": "Updates",
    "diagnostics": "Diagnostics",
    "rollout": "Training episodes",
    "eval": "Evaluations",
    "time": "Speed",
}
DRAWN = ("eval/mean_reward", "time/total_timesteps")  # the learning curves, and their axis
FIRST_METRICS = ("critic_loss", "actor_loss", "value_loss", "loss", "mean", "grad_norm", "entropy", "ent_coef")
DASH = "&ndash;"  # where there is no figure
BY_INDEX = "(by index)"  # what is drawn over something else than steps
SEEM, SEEM_Q, SEEM_LIMIT = "diagnostics/seem_normalised", "diagnostics/seem_q_mean", 0.02


def render(tasks: Sequence[Task], runs: Sequence[Run], empty: Sequence[Run], created: str) -> str:
    """The whole page as HTML; `created` is the date it shows, `empty` are runs that have logged nothing yet."""
    agents = {group.agent: group.colour for task in tasks for group in task.groups}
    counts = " · ".join(
        f"{count} {word}{'s' * (count != 1)}"
        for count, word in ((len(runs), "run"), (len(tasks), "task"), (len(agents), "agent"))
    )
    failed, training = sum(bool(run.failure) for run in runs), sum(not (run.done or run.failure) for run in runs)
    state = f" · {training} not finished" if training else ""
    state += f" · {failed} failed" if failed else ""
    parts = [f"<header><h1>Trimtab report</h1><p>{counts}{state} · {escape(created)}</p></header>"]
    if len(tasks) > 1:
        parts.append(_overview(tasks, agents))
    parts += [_task_section(task, index) for index, task in enumerate(tasks)]
    parts.append(_runs_section(runs, empty))
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>Trimtab report: {escape(', '.join(task.name for task in tasks))}</title>"
        f"<style>{STYLE}</style></head>\n<body><main>\n" + "\n".join(parts) + "\n</main></body></html>\n"
    )


def _overview(tasks: Sequence[Task], agents: dict[str, str]) -> str:
    head = "".join(f"<th>{_chip(agent, colour)}</th>" for agent, colour in agents.items())
    rows = []
    for index, task in enumerate(tasks):
        found = {group.agent: group.last.iqm for group in task.groups if group.last}
        top = max((estimate.value for estimate in found.values()), default=math.nan)
        columns = ""
        for agent in agents:
            lead = ' class="lead"' if agent in found and len(found) > 1 and found[agent].value == top else ""
            columns += f"<td{lead}>{_estimate(found.get(agent))}</td>"
        rows.append(f'<tr><th><a href="#task{index}">{escape(task.name)}</a></th>{columns}</tr>')
    return (
        f'<section class="card"><h2>At a glance</h2>{_table(f"<thead><tr><th>task</th>{head}</tr></thead>", rows)}'
        '<p class="note">Interquartile mean of the return at the last checkpoint, with its 95 % interval over seeds. '
        "The highest of a row is bold; whether it is more than luck stands under each task.</p></section>"
    )


def _task_section(task: Task, index: int) -> str:
    legend = " ".join(_chip(group.agent, group.colour) for group in task.groups)
    parts = [f'<section id="task{index}"><h2>{escape(task.name)}</h2><p class="legend">{legend}</p>']
    plots = []
    success = any(group.success for group in task.groups)
    size = (5.2, 3.3) if success else (10.4, 3.9)
    if any(group.curves for group in task.groups):
        bands = any(len(group.curves) > 1 for group in task.groups)
        text = f"Mean return of {task.meaning}" + (
            "; thin lines are seeds, thick ones their interquartile mean, with the 95 % bootstrap band."
            if bands
            else "."
        )
        if task.switches:
            text += " The dashed line is the switch from the data set to the environment."
        svg = _plot(lambda axes: _draw_curves(axes, task), size, f"{task.name}: learning curve")
        plots.append(f"<figure>{svg}<figcaption>{text}</figcaption></figure>")
    if success:
        svg = _plot(lambda axes: _draw_success(axes, task), size, f"{task.name}: success rate")
        text = "Share of evaluation episodes that succeed, interquartile mean over seeds."
        plots.append(f"<figure>{svg}<figcaption>{text}</figcaption></figure>")
    if any(SEEM in run.metrics for group in task.groups for run in group.runs):
        svg = _plot(lambda axes: _draw_seem(axes, task), (10.4, 3.6), f"{task.name}: early warning")
        text = (
            "Early warning: normalised SEEM (solid, left; above the dotted line values feed on themselves) against the "
            "mean |Q| of the same transitions (dashed, right, logarithmic)."
        )
        plots.append(f"<figure>{svg}<figcaption>{text}</figcaption></figure>")
    parts.append(f'<div class="card plots">{"".join(plots)}</div>' if plots else "")
    parts.append(_evaluation_table(task))
    parts.append(_switch_table(task))
    parts.append(_comparisons(task))
    parts.append(_verdict_list(task))
    parts.append(_videos(task))
    parts += [_metric_plots(task, prefix, title) for prefix, title in SECTIONS.items()]
    parts.append(_diagnosis_values(task))
    return "\n".join(part for part in parts if part) + "</section>"


def _evaluation_table(task: Task) -> str:
    estimates = [group.last.iqm for group in task.groups if group.last]
    ends = [x for e in estimates for x in (e.value, e.low, e.high) if math.isfinite(x)]
    success = any(group.success for group in task.groups)
    rows = []
    for group in task.groups:
        counted = [run for run in group.runs if run.last is not None]
        cells = [str(len(counted)) + (f" of {len(group.runs)}" if len(counted) < len(group.runs) else "")]
        if group.last and group.best:
            steps = [run.step for run in counted]
            cells += [" to ".join(dict.fromkeys((_short(min(steps)), _short(max(steps))))), _estimate(group.last.iqm)]
            cells += [_bar(group.last.iqm, min(ends), max(ends), group.colour) if min(ends) < max(ends) else ""]
            others = (group.last.mean, group.last.median, group.best.mean)
            cells += [_estimate(estimate) if len(counted) > 1 else _number(estimate.value) for estimate in others]
        else:
            cells += ["no score", *[""] * 5]
        if task.references:
            score = task.normalized(group.last.iqm) if group.last else None
            cells.append(_estimate(score) if score else DASH)
        if success:
            cells.append(_share(float(group.success.iqm[-1])) if group.success else DASH)
        columns = "".join(f"<td>{cell}</td>" for cell in cells)
        rows.append(f"<tr><th>{_chip(group.agent, group.colour)}</th>{columns}</tr>")
    more = (*(("score",) if task.references else ()), *(("success",) if success else ()))
    names = ("agent", "seeds", "step", "IQM", "", "mean", "median", "mean", *more)
    head = (
        '<thead><tr><th colspan="3"></th><th colspan="4" class="over">last checkpoint</th>'
        f'<th class="over">best checkpoint</th>{"<th></th>" * len(more)}</tr><tr>'
        + "".join(f"<th>{name}</th>" for name in names)
        + "</tr></thead>"
    )
    notes = "".join(f'<p class="note">{note}</p>' for note in _notes(task))
    return f'<div class="card"><h3>Return</h3>{_table(head, rows)}{notes}</div>'


def _switch_table(task: Task) -> str:
    """What each agent had on either side of its switch from data to online, mean over its seeds."""
    rows, success = [], any(group.success for group in task.groups)
    for group in task.groups:
        measures = (lambda run: run.returns, lambda run: run.successes) if success else (lambda run: run.returns,)
        found = [[run.around_switch(of(run)) for run in group.runs] for of in measures]
        known = [[pair for pair in pairs if pair is not None] for pairs in found]
        if not known[0]:
            continue
        cells = [_short(min(run.switch for run in group.runs if run.switch is not None))]
        for pairs, number in zip(known, (_number, _share), strict=False):
            cells += [number(float(np.mean(side))) for side in zip(*pairs, strict=True)] if pairs else [DASH, DASH]
        rows.append(
            f"<tr><th>{_chip(group.agent, group.colour)}</th>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>"
        )
    if not rows:
        return ""
    names = ("agent", "switch", "return before", "after", *(("success before", "after") if success else ()))
    head = f"<thead><tr>{''.join(f'<th>{name}</th>' for name in names)}</tr></thead>"
    return (
        f'<div class="card"><h3>From data to online</h3>{_table(head, rows)}<p class="note">The last evaluation before '
        "the switch and the first one after an update online, mean over seeds.</p></div>"
    )


def _notes(task: Task) -> list[str]:
    """What a reader must know before trusting the table."""
    notes = [
        "Score of a seed: mean return of its evaluation episodes. In brackets the 95 % interval of the stratified "
        "bootstrap over seeds. The best checkpoint is chosen on the episodes that measure it, so it flatters: quote "
        "the last."
    ]
    if task.references:
        random, expert = task.references
        notes.append(
            f"score: the IQM normalised, 0 at {_number(random)} (uniform actions) and 100 at {_number(expert)} (the "
            "policy behind the expert data), the two returns stored with the data set. These are not D4RL's scores."
        )
    sizes = [len(group.scores) for group in task.groups if group.scores]
    if 1 in sizes:
        notes.append("1 seed: no interval. Nothing is known about the spread over seeds; train at least five.")
    if any(2 <= size < 5 for size in sizes):
        notes.append("Fewer than five seeds: the intervals are too narrow to be trusted.")
    if len({run.step for group in task.groups for run in group.runs if run.last is not None}) > 1:
        notes.append("The runs stop at different steps, so their last checkpoints are not strictly comparable.")
    for group in task.groups:
        seeds = [run.seed for run in group.runs]
        if twice := sorted({str(seed) for seed in seeds if seeds.count(seed) > 1}):
            notes.append(f"{escape(group.agent)}: seed {', '.join(twice)} occurs more than once, and each run counts.")
        for run in group.runs:
            if run.diverged:
                where = ", ".join(f"{escape(name)} from step {_short(step)}" for name, step in run.diverged.items())
                counts = "; it has no score" if run.lost else ""
                who = f"{escape(group.agent)}, seed {escape(str(run.seed))}"
                notes.append(f'<b class="alarm">Not finite</b> in {who}: {where}{counts}.')
    return notes


def _comparisons(task: Task) -> str:
    if not task.pairs:
        return ""
    rows = [
        f"<tr><th>{_chip(a.agent, a.colour)} &gt; {_chip(b.agent, b.colour)}</th><td>{_estimate(estimate, _share)}</td>"
        f"<td>{_bar(estimate, 0.0, 1.0, a.colour, middle=True)}</td></tr>"
        for a, b, estimate in task.pairs
    ]
    return (
        f'<div class="card pairs"><h3>Probability of improvement</h3>{_table("", rows)}'
        '<p class="note">P(A &gt; B): how often a random seed of A ends above a random seed of B. An interval that '
        "holds 0.5 (the mark in the middle) means that these runs do not tell the two apart.</p></div>"
    )


def _table(head: str, rows: Sequence[str]) -> str:
    return f'<div class="scroll"><table>{head}<tbody>{"".join(rows)}</tbody></table></div>'


def _verdict_list(task: Task) -> str:
    items = []
    for group in task.groups:
        for run in group.runs:
            for verdict in verdicts(run):
                level = verdict["level"] if verdict["level"] in ("ok", "warn", "bad") else "warn"
                items.append(
                    f'<li class="{level}"><span class="level">{escape(verdict["level"])}</span><span><b>'
                    f"{escape(verdict['name'])}</b> {_chip(f'{group.agent}, seed {run.seed}', group.colour)}<br>"
                    f"{escape(verdict['text'])}</span></li>"
                )
    return f'<div class="card"><h3>Diagnosis</h3><ul class="verdicts">{"".join(items)}</ul></div>' if items else ""


def _videos(task: Task) -> str:
    items, left = [], []
    for group in task.groups:
        newest = [run.videos[-1:] for run in group.runs]
        older = [run.videos[:-1] for run in group.runs]
        shown = 0
        for path in itertools.chain(*newest):
            if shown == MAX_VIDEOS or path.stat().st_size > MAX_VIDEO_BYTES:
                left.append(path)
                continue
            shown += 1
            data = base64.b64encode(path.read_bytes()).decode()
            items.append(
                f'<figure><video controls muted loop playsinline src="data:video/mp4;base64,{data}"></video>'
                f"<figcaption>{_chip(group.agent, group.colour)} {escape(path.parent.parent.name)}, {escape(path.name)}"
                "</figcaption></figure>"
            )
        left += itertools.chain(*older)
    more = f"<p class=note>Not embedded: {escape(', '.join(map(str, left)))}</p>" if left else ""
    if not items and not more:
        return ""
    return f'<div class="card"><h3>Videos</h3><div class="videos">{"".join(items)}</div>{more}</div>'


def _metric_plots(task: Task, prefix: str, title: str) -> str:
    """Small multiples: one plot a metric, one line a run."""
    lines: dict[str, list[tuple[str, Series]]] = {}
    for group in task.groups:
        for run in group.runs:
            for name, series in run.metrics.items():
                if name.startswith(f"{prefix}/") and name not in DRAWN:
                    lines.setdefault(name.removeprefix(f"{prefix}/"), []).append((group.colour, series))
    if prefix == "diagnostics":
        lines |= _diagnosis_arrays(task)
    if not lines:
        return ""
    rank = lambda name: next((i for i, part in enumerate(FIRST_METRICS) if part in name), len(FIRST_METRICS))
    plots = []
    for name in sorted(lines, key=lambda name: (rank(name), name)):
        where = () if name.endswith(BY_INDEX) else task.switches
        draw = lambda axes, name=name, where=where: _draw_lines(axes, lines[name], where)
        svg = _plot(draw, (3.1, 1.75), f"{task.name}: {prefix}/{name}")
        plots.append(f"<figure><figcaption>{escape(name.replace('_', ' '))}</figcaption>{svg}</figure>")
    shown = "open" if prefix in ("train", "diagnostics") else ""
    return (
        f'<details class="card" {shown}><summary>{title} <span class="faint">{len(plots)}</span></summary>'
        f'<div class="small">{"".join(plots)}</div></details>'
    )


def _diagnosis_arrays(task: Task) -> dict[str, list[tuple[str, Series]]]:
    """The arrays of `diagnose.json` over their index; only those of one axis of numbers can be drawn."""
    lines: dict[str, list[tuple[str, Series]]] = {}
    for group in task.groups:
        for run in group.runs:
            for name, values in (run.diagnosis.get("arrays") or {}).items():
                if isinstance(values, list) and all(isinstance(value, int | float) for value in values):
                    series = as_series(enumerate(values))
                    if len(series[0]):
                        lines.setdefault(f"{name} {BY_INDEX}", []).append((group.colour, series))
    return lines


def _diagnosis_values(task: Task) -> str:
    runs = [(group, run) for group in task.groups for run in group.runs if run.diagnosis.get("values")]
    if not runs:
        return ""
    names = sorted({name for _, run in runs for name in run.diagnosis["values"]})
    head = "".join(f"<th>{_chip(f'{group.agent}, seed {run.seed}', group.colour)}</th>" for group, run in runs)
    rows = [
        f"<tr><th>{escape(name)}</th>"
        + "".join(f"<td>{_number(finite(run.diagnosis['values'].get(name)))}</td>" for _, run in runs)
        + "</tr>"
        for name in names
    ]
    table = _table(f"<thead><tr><th></th>{head}</tr></thead>", rows)
    return f'<details class="card"><summary>Figures of the diagnosis</summary>{table}</details>'


def _runs_section(runs: Sequence[Run], empty: Sequence[Run]) -> str:
    everyone = [str(run.path.resolve()) for run in (*runs, *empty)]
    root = os.path.commonpath(everyone) if len(everyone) > 1 else str(runs[0].path.resolve().parent)
    name = lambda run: escape(os.path.relpath(run.path.resolve(), root))
    rows = []
    for run in runs:
        step = _short(run.step) + (f" of {_short(run.total)}" if not run.done and math.isfinite(run.total) else "")
        tested = DASH
        if (iqm := finite(run.evaluation.get("iqm"))) is not None:
            low, high = (finite(run.evaluation.get(name)) for name in ("iqm_low", "iqm_high"))
            interval = f" [{_number(low)}, {_number(high)}]" if low is not None and high is not None else ""
            count = len(run.evaluation.get("episodes") or [])
            where = escape(str(run.evaluation.get("checkpoint", "")))
            tested = f'{_number(iqm)} <span class="faint">{interval} {count} episodes, {where}</span>'
        state = "done" if run.done else f"failed: {escape(run.failure)}" if run.failure else "not finished"
        cells = (escape(str(run.seed)), state, step, _number(run.last), _number(run.best), tested)
        rows.append(f"<tr><th>{name(run)}</th>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>")
    for run in empty:
        rows.append(
            f"<tr><th>{name(run)}</th><td>{escape(str(run.seed))}</td>"
            '<td colspan="5" class="faint">nothing logged yet</td></tr>'
        )
    names = ("run", "seed", "state", "step", "last", "best", "trimtab eval, IQM over episodes")
    parts = [_table(f"<thead><tr>{''.join(f'<th>{name}</th>' for name in names)}</tr></thead>", rows)]
    commands = "\n".join(dict.fromkeys(run.command for run in runs if run.command))
    if commands:
        parts.append(f"<h3>Commands</h3><pre>{escape(commands)}</pre>")
    machines: dict[str, list[Run]] = {}
    for run in runs:
        if run.machine:
            machines.setdefault(json.dumps(run.machine, sort_keys=True), []).append(run)
    for key, users in machines.items():
        machine = json.loads(key)
        versions = machine.pop("versions", None) or {}
        facts = {**machine, **(versions if isinstance(versions, dict) else {"versions": versions})}
        cells = "".join(f"<div><dt>{escape(str(k))}</dt><dd>{escape(str(v))}</dd></div>" for k, v in facts.items())
        which = "" if len(machines) == 1 else f' <span class="faint">{len(users)} of {len(runs)} runs</span>'
        parts.append(f"<h3>Versions and device{which}</h3><dl>{cells}</dl>")
    where = f'<p class="note">below {escape(root)}</p>'
    return f'<section class="card"><h2>Runs</h2>{where}{"".join(parts)}</section>'


def _chip(text: str, colour: str) -> str:
    return f'<span class="chip"><i style="background:{colour}"></i>{escape(text)}</span>'


def _number(value: float | None) -> str:
    """Four significant digits, as a reader writes them: 3,214 and 0.8312."""
    if value is None or not math.isfinite(value):
        return DASH
    if abs(value) >= 1000:
        return f"{value:,.0f}" if abs(value) < 1e9 else f"{value:.3e}"
    return f"{value:.4g}"


def _share(value: float) -> str:
    return f"{value:.2f}"


def _estimate(estimate: Estimate | None, number: Callable[[float], str] = _number) -> str:
    if estimate is None:
        return DASH
    if not math.isfinite(estimate.low):
        return f'{number(estimate.value)} <span class="faint">1 seed: no interval</span>'
    return f'{number(estimate.value)} <span class="faint">[{number(estimate.low)}, {number(estimate.high)}]</span>'


def _bar(estimate: Estimate, low: float, high: float, colour: str, middle: bool = False) -> str:
    """The figure and its interval on an axis from `low` to `high`."""
    span = (high - low) or 1.0
    place = lambda x: 2.0 + 96.0 * (x - low) / span
    mark = '<u style="left:50%"></u>' if middle else ""
    interval = ""
    if math.isfinite(estimate.low):
        left, width = place(estimate.low), place(estimate.high) - place(estimate.low)
        interval = f'<i style="left:{left:.1f}%;width:{max(width, 0.5):.1f}%;background:{colour}"></i>'
    point = f'<b style="left:{place(estimate.value):.1f}%;background:{colour}"></b>'
    return f'<div class="bar">{mark}{interval}{point}</div>'


def _plot(draw: Callable[[Any], None], size: tuple[float, float], name: str) -> str:
    """An inline SVG of `size` inches. `name` labels it and keeps its ids apart from those of the other plots."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    style: dict[Any, Any] = {
        "svg.fonttype": "none",
        "svg.hashsalt": name,
        "font.size": 9,
        "text.color": INK,
        "axes.labelcolor": MUTED,
        "axes.edgecolor": LINE,
        "xtick.color": LINE,
        "ytick.color": LINE,
        "xtick.labelcolor": MUTED,
        "ytick.labelcolor": MUTED,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.spines.left": False,
        "ytick.major.size": 0,
        "axes.grid": True,
        "axes.grid.axis": "y",
        "grid.color": LINE,
        "grid.linewidth": 0.7,
        "axes.axisbelow": True,
        "lines.solid_capstyle": "round",
    }
    with rc_context(style):
        figure = Figure(figsize=size)
        axes = figure.subplots()
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: _short(x)))
        axes.yaxis.set_major_locator(MaxNLocator(4 if size[1] < 3 else 6))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: _short(y)))
        draw(axes)
        figure.tight_layout(pad=0.3)
        text = io.StringIO()
        none = {"Creator": None, "Date": None, "Format": None, "Type": None}
        figure.savefig(text, format="svg", transparent=True, metadata=none)
    svg = text.getvalue()
    svg = svg[svg.index("<svg") :]
    box = re.search(r'viewBox="[^"]*"', svg)
    assert box is not None
    svg = f'<svg {box[0]} role="img" aria-label="{escape(name)}">' + svg[svg.index(">") + 1 :]
    # What the browser does not need: comments, ids that nothing refers to, a rule that would apply to the whole page.
    svg = re.sub(r"<!--.*?-->|<style.*?</style>|<metadata.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r' id="[A-Za-z0-9.]+_\d+"', "", svg).replace("xlink:href", "href")
    for colour, variable in VARIABLES.items():
        svg = svg.replace(colour, variable)
    return svg


def _line(axes: Any, series: Series, colour: str, width: float, opacity: float) -> None:
    steps, values = series
    marker = "o" if len(steps) == 1 else ""
    axes.plot(steps, values, color=colour, linewidth=width, alpha=opacity, marker=marker, markersize=4)


def _draw_curves(axes: Any, task: Task) -> None:
    for group in task.groups:
        several = len(group.curves) > 1 and group.band is not None
        for series in group.curves:
            _line(axes, thin(series, MAX_POINTS), group.colour, 0.9 if several else 2.0, 0.35 if several else 1.0)
        if several and group.band:
            band = group.band
            axes.fill_between(band.steps, band.low, band.high, color=group.colour, alpha=0.16, linewidth=0)
            _line(axes, (band.steps, band.iqm), group.colour, 2.2, 1.0)
    _draw_switches(axes, task.switches)
    axes.set_xlabel(task.axis)
    axes.set_ylabel("return")


def _draw_switches(axes: Any, switches: Sequence[int]) -> None:
    """A dashed line where agents go over from a data set to the environment."""
    for step in switches:
        axes.axvline(step, color=MUTED, linewidth=0.9, linestyle=(0, (4, 3)))


def _draw_success(axes: Any, task: Task) -> None:
    for group in task.groups:
        if group.success:
            band = group.success
            axes.fill_between(band.steps, band.low, band.high, color=group.colour, alpha=0.16, linewidth=0)
            _line(axes, (band.steps, band.iqm), group.colour, 2.2, 1.0)
    _draw_switches(axes, task.switches)
    axes.set_ylim(-0.03, 1.03)
    axes.set_xlabel(task.axis)
    axes.set_ylabel("success rate")


def _draw_seem(axes: Any, task: Task) -> None:
    """Normalised SEEM, and on a second axis |Q|, of all runs that were watched."""
    right = axes.twinx()
    right.set_yscale("log")
    right.grid(False)
    for group in task.groups:
        for run in group.runs:
            if SEEM in run.metrics and SEEM_Q in run.metrics:
                _line(axes, thin(run.metrics[SEEM], MAX_POINTS), group.colour, 1.6, 0.9)
                steps, q = thin(run.metrics[SEEM_Q], MAX_POINTS)
                right.plot(steps, np.maximum(np.abs(q), 1e-6), color=group.colour, linewidth=1.2, linestyle="--")
    axes.axhline(SEEM_LIMIT, color=MUTED, linewidth=0.9, linestyle=":")
    axes.set_xlabel(task.axis)
    axes.set_ylabel("SEEM / ||A||")
    right.set_ylabel("|mean Q|")


def _draw_lines(axes: Any, lines: Sequence[tuple[str, Series]], switches: Sequence[int] = ()) -> None:
    """Small plot: one line a run. A quantity that spans more than 2.5 decades gets a logarithmic axis."""
    lines = [(colour, thin(series, SMALL_POINTS)) for colour, series in lines]
    values = np.concatenate([series[1] for _, series in lines])
    if values.min() > 0 and values.max() > 300 * values.min():
        axes.set_yscale("log")
    crowded = len(lines) > 3
    for colour, series in lines:
        _line(axes, series, colour, 0.9 if crowded else 1.4, 0.65 if crowded else 0.9)
    _draw_switches(axes, switches)


def _short(value: int | float) -> str:
    """A tick's label: 250000 as 250k, 0.00030 as 0.0003."""
    if not math.isfinite(value):
        return DASH
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(value) >= size:
            return f"{value / size:.4g}{unit}"
    return f"{value:.4g}"


STYLE = """
:root { --page: #f6f7f9; --card: #fff; --ink: #1b2330; --muted: #64708a; --line: #e3e7ee; --ok: #0e9f6e;
  --warn: #b45309; --bad: #e02424; color-scheme: light dark; }
@media (prefers-color-scheme: dark) { :root { --page: #0e1117; --card: #171b24; --ink: #e8ecf4; --muted: #94a0b8;
  --line: #2a3140; --ok: #31c48d; --warn: #e3a008; --bad: #f98080; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", sans-serif; }
main { max-width: 1120px; margin: 0 auto; padding: 2.5rem 1.25rem 4rem; }
header { margin-bottom: 1.75rem; } header p { margin: 0; color: var(--muted); }
h1 { font-size: 1.9rem; letter-spacing: -0.02em; margin: 0; }
h2 { font-size: 1.35rem; letter-spacing: -0.01em; margin: 0 0 .35rem; }
h3 { font-size: 1rem; margin: 0 0 .6rem; } .card h3:not(:first-child) { margin-top: 1.5rem; }
section:not(.card) { margin-top: 2.75rem; } section.card { margin-top: 2rem; }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 12px; padding: 1.15rem 1.3rem;
  margin: 0 0 1rem; }
.legend { margin: 0 0 .9rem; } .legend .chip { margin-right: 1rem; }
.chip { display: inline-flex; align-items: center; gap: .4rem; white-space: nowrap; }
.chip i { width: .7rem; height: .7rem; border-radius: 3px; flex: none; }
figure { margin: 0; min-width: 0; } figcaption { color: var(--muted); font-size: .85rem; }
svg { display: block; width: 100%; height: auto; } svg text { font-family: inherit !important; }
.plots, .small, .videos { display: grid; gap: 1.1rem 1.4rem; }
.plots { grid-template-columns: repeat(auto-fit, minmax(min(420px, 100%), 1fr)); }
.small { grid-template-columns: repeat(auto-fill, minmax(230px, 1fr)); margin-top: .9rem; }
.small figcaption { color: var(--ink); font-weight: 550; margin-bottom: .15rem; }
.videos { grid-template-columns: repeat(auto-fill, minmax(min(320px, 100%), 1fr)); }
video { width: 100%; border-radius: 8px; display: block; background: #000; margin-bottom: .4rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { padding: .45rem 1rem .45rem 0; text-align: left; white-space: nowrap; font-weight: 400; }
thead th { color: var(--muted); font-size: .82rem; padding-bottom: .2rem; vertical-align: bottom; }
tbody tr > * { border-top: 1px solid var(--line); } tbody:first-child tr:first-child > * { border-top: 0; }
.lead { font-weight: 650; } .lead .faint { font-weight: 400; }
.faint, .note { color: var(--muted); } .faint { font-size: .86em; }
.note { font-size: .85rem; margin: .6rem 0 0; } .alarm { color: var(--bad); }
.bar { position: relative; height: 16px; min-width: 130px; border-radius: 4px;
  background: color-mix(in srgb, var(--line) 45%, transparent); }
.bar i { position: absolute; top: 4px; height: 8px; border-radius: 4px; opacity: .38; }
.bar b { position: absolute; top: 1px; width: 4px; height: 14px; margin-left: -2px; border-radius: 2px; }
.bar u { position: absolute; top: 0; bottom: 0; width: 1px; background: var(--muted); }
td:has(.bar) { width: 28%; } .pairs th { width: 1%; } .pairs td:has(.bar) { width: 60%; }
.verdicts { list-style: none; margin: 0; padding: 0; display: grid; gap: .6rem; }
.verdicts li { display: flex; gap: .8rem; align-items: baseline; }
.verdicts b { margin-right: .6rem; } .verdicts .chip { color: var(--muted); font-size: .86rem; }
.level { flex: none; width: 3.4rem; text-align: center; border-radius: 99px; font-size: .78rem; font-weight: 650;
  padding: .05rem 0; color: var(--tone); background: color-mix(in srgb, var(--tone) 14%, transparent); }
.ok { --tone: var(--ok); } .warn { --tone: var(--warn); } .bad { --tone: var(--bad); }
summary { cursor: pointer; font-weight: 600; } details .scroll { margin-top: .7rem; }
pre { margin: 0; padding: .8rem 1rem; background: var(--page); border-radius: 8px; overflow-x: auto;
  font-size: .84rem; }
dl { display: grid; grid-template-columns: repeat(auto-fill, minmax(170px, 1fr)); gap: .6rem 1.2rem; margin: 0; }
dt { color: var(--muted); font-size: .82rem; } dd { margin: 0; overflow-wrap: anywhere; }
a { color: inherit; text-decoration-color: var(--muted); text-underline-offset: 3px; }
@media print { body { background: #fff; } .card { break-inside: avoid; } }
"""
