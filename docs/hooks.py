"""What the pages take from elsewhere when the site is built, so that it cannot go stale.

`<!-- flags MODULE CLASS [PREFIX] -->` becomes a table of the fields of a dataclass: flag, default, meaning.
`<!-- results -->` becomes tables of the benchmark results in docs/results/*.json; without any, a line that says so.
`<!-- paper FOLDER -->` becomes the table and the checks of docs/results/FOLDER/results.json, which a recipe wrote;
`<!-- paper FOLDER | METRIC | METRIC -->` shows the rows of these metrics alone.
What cannot be read is named in a warning, which the strict build turns into an error.
"""

import json
import logging
import re
import statistics
from pathlib import Path
from typing import Any

import griffe

log = logging.getLogger("mkdocs.hooks.trimtab")

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "docs" / "results"
RESULTS_MARKER = "<!-- results -->"
FLAGS_MARKER = re.compile(r"<!-- flags (\S+) (\S+)(?: (\S+))? -->")
PAPER_MARKER = re.compile(r"<!-- paper (\S+)((?: \| [^|]+?)*) -->")
EMPTY = "No results are stored in `docs/results` yet: the commands above write them."


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """The page's text with its markers filled in."""
    markdown = FLAGS_MARKER.sub(lambda found: flags(*found.groups()), markdown)
    shown = lambda found: [name.strip() for name in found.group(2).split("|") if name.strip()]
    markdown = PAPER_MARKER.sub(lambda found: paper(RESULTS / found.group(1) / "results.json", shown(found)), markdown)
    if RESULTS_MARKER in markdown:
        sections = [section(path) for path in sorted(RESULTS.glob("*.json"))]
        markdown = markdown.replace(RESULTS_MARKER, "\n\n".join(filter(None, sections)) or EMPTY)
    return markdown


# Flags


def flags(module: str, name: str, prefix: str | None) -> str:
    """The fields of a dataclass as a Markdown table."""
    fields = griffe.load(module, search_paths=[ROOT])[name].attributes.values()
    body = [
        [f"`{_flag(field, prefix or '')}`", _default(field), text(field.docstring.value if field.docstring else "")]
        for field in fields
        if field.annotation is not None
    ]
    return "\n".join(rows(["flag", "default", "meaning"], body))


def _flag(field: Any, prefix: str) -> str:
    annotation = str(field.annotation)
    if "Positional" in annotation:
        return "RUN…" if "tuple" in annotation else field.name.upper()
    renamed = re.search(r"name=['\"]([^'\"]+)", annotation)
    return f"--{prefix}{renamed.group(1) if renamed else field.name.replace('_', '-')}"


def _default(field: Any) -> str:
    value = None if field.value is None else str(field.value)
    if value is None:
        return "needed"
    value = value.removeprefix("Path(").removesuffix(")") if value.startswith("Path(") else value
    value = value.replace("(", "").replace(")", "").replace(",", "").replace("_", "").replace("'", "").replace('"', "")
    return "" if value in ("None", "") else f"`{value}`"


# Recipes


def paper(path: Path, metrics: list[str]) -> str:
    """What a recipe found: a row a setting and method with the interquartile mean over seeds, its 95 % interval and the
    figure of every seed; then its checks. Older results have no intervals: there it is the median. `metrics`: those to
    show; none are all."""
    try:
        record = json.loads(path.read_text())
        missing = sorted(set(metrics) - {row["metric"] for row in record["rows"]})
        if missing:
            log.warning("%s has no metric %s", path, ", ".join(missing))
        record["rows"] = [row for row in record["rows"] if not metrics or row["metric"] in metrics]
        inner = {(line["setting"], line["metric"], line["method"]): line for line in record.get("summary", [])}
        found: dict[tuple[str, str, str], list[float]] = {}
        for row in record["rows"]:
            found.setdefault((row["setting"], row["metric"], row["method"]), []).append(row["value"])
        body = [
            [*key, typical(inner.get(key), values), " ".join(number(value) for value in values)]
            for key, values in found.items()
        ]
        checks = [
            [
                check["name"],
                number(check["value"]),
                number(check["threshold"]),
                "holds" if check["passed"] else "**FAILS**",
            ]
            for check in record["checks"]
        ]
        head = "IQM [95 %]" if inner else "median"
        parts = [rows(["setting", "metric", "method", head, "seeds, in order"], body)]
        parts += [[""], rows(["check", "value", "threshold", ""], checks)] if checks else []
        versions = ", ".join(f"{name} {version}" for name, version in sorted(record["versions"].items()))
        return "\n".join([line for part in parts for line in part] + ["", f"`{record['command']}`; {versions}."])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        log.warning("%s is not a recipe's result: %s: %s", path, type(error).__name__, error)
        return ""


def typical(line: dict[str, Any] | None, values: list[float]) -> str:
    """What the seeds come to, from the summary's line if there is one."""
    if line is None:
        return number(statistics.median(values))
    return interval(line["iqm"], [line["low"], line["high"]])


# Benchmark results


def section(path: Path) -> str:
    """One result file as Markdown: the table of its rows, and what it was measured on."""
    try:
        record = json.loads(path.read_text())
        link = f"[{path.name}](results/{path.name})"
        return "\n".join([f"### {path.stem}", "", *table(record["rows"]), "", about(record) + " " + link])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        log.warning("%s is not a benchmark result: %s: %s", path, type(error).__name__, error)
        return ""


def table(found: list[dict[str, Any]]) -> list[str]:
    """Returns with intervals, paired rates with their ratios, or any other rows with their own keys as columns."""
    if not found:
        raise ValueError("it has no rows")
    have = lambda *keys: all(set(keys) <= row.keys() for row in found)
    if have("case", "ours", "ours_interval", "peer", "peer_interval", "peer_name", "better"):
        head = ["case", "Trimtab", "peer", "", "P(Trimtab > peer)", "unit"]
        body = [
            [
                r["case"],
                interval(r["ours"], r["ours_interval"]),
                interval(r["peer"], r["peer_interval"]),
                r["peer_name"],
                number(r["better"]),
                r.get("unit", ""),
            ]
            for r in found
        ]
    elif have("case", "ours", "peer", "peer_name", "ratio", "ratio_min", "ratio_max"):
        head = ["case", "Trimtab", "peer", "", "ratio", "least to largest", "unit"]
        body = [
            [
                r["case"],
                number(r["ours"]),
                number(r["peer"]),
                r["peer_name"],
                f"**{r['ratio']:.2f}**",
                f"{r['ratio_min']:.2f} to {r['ratio_max']:.2f}",
                r.get("unit", ""),
            ]
            for r in found
        ]
    else:
        head = list(found[0])
        body = [[number(r.get(key)) for key in head] for r in found]
    return rows(head, body)


def number(value: Any) -> str:
    """A figure with a sensible number of digits; an interval as `low to high`; anything else as text."""
    if value is None or value != value:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int | float):
        return f"{value:,.0f}" if 100 <= abs(value) < 1e9 else f"{value:.3g}"
    if isinstance(value, list | tuple):
        return (" to " if len(value) == 2 else ", ").join(map(number, value))
    return text(value)


def interval(value: float, bounds: list[float]) -> str:
    """A figure and its interval, where there is one."""
    known = all(bound is not None and bound == bound for bound in bounds)
    return f"{number(value)} ({number(bounds)})" if known else number(value)


def about(record: dict[str, Any]) -> str:
    """Machine and versions in one line."""
    machine = record.get("machine") or {}
    cores = f"{machine['cores']} cores" if machine.get("cores") else ""
    where = ", ".join(str(part) for part in (machine.get("cpu"), cores) if part) or "a machine without a name"
    versions = {name: v for name, v in (record.get("versions") or {}).items() if v != "not installed"}
    return (
        f"Measured on {where}, with {', '.join(f'{name} {v}' for name, v in versions.items()) or 'unknown versions'}."
    )


# Markdown


def rows(head: list[str], body: list[list[str]]) -> list[str]:
    """A Markdown table; columns of figures are set flush right."""
    figures = [all(re.fullmatch(r"\**-?[\d.,]+\**", line[i]) for line in body) for i in range(len(head))]
    align = ["---:" if figure else "---" for figure in figures]
    return ["| " + " | ".join(line) + " |" for line in [head, align, *body]]


def text(value: Any) -> str:
    """One line that cannot break a table."""
    return " ".join(str(value).split()).replace("|", "\\|")
