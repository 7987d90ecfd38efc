"""A job in a notebook, as it goes on: how far it is, its averaged curves, and who is waited for. Plain HTML and SVG."""

import html
from dataclasses import dataclass, field
from typing import Any

from coordinator import events
from coordinator.console import lines_of

_MOST_NOTES = 4
_WIDTH, _HEIGHT = 220, 56  # of a curve, in CSS pixels


@dataclass
class Progress:
    """What a view shows of a job."""

    job: str
    rounds: int = 0
    released: int = 0
    aggregator: str = ""
    floor: int = 0
    state: str = "connecting"
    curves: dict[str, list[tuple[int, float]]] = field(default_factory=dict)
    seconds: list[float] = field(default_factory=list)
    contributors: int = 0
    notes: list[str] = field(default_factory=list)

    def note(self, event: events.Event) -> None:
        """Take up what happened."""
        match event:
            case events.JobStarted():
                self.rounds, self.released = event.spec.rounds, event.released
                self.aggregator, self.floor = event.aggregator, event.floor
                self.state = "running"
            case events.RoundFinished():
                self.rounds, self.released = event.releases, event.release
                self.contributors, self.state = event.contributors, "running"
                self.seconds.append(event.seconds)
                for name, value in event.metrics.items():
                    self.curves.setdefault(name, []).append((event.release, value))
            case events.JobFinished():
                self.state = "finished"
                self.notes = []
            case _:
                self.notes = [*self.notes, *lines_of(event)][-_MOST_NOTES:]


class LiveView:
    """An observer that shows the job in the output of the notebook's cell, and brings it up to date."""

    def __init__(self, job: str) -> None:
        self._progress = Progress(job)
        self._handle: Any = None

    def __call__(self, event: events.Event) -> None:
        """Show what has changed."""
        from IPython.display import HTML, display

        self._progress.note(event)
        shown = HTML(as_html(self._progress))  # type: ignore[no-untyped-call]  # IPython has no types
        if self._handle is None:
            self._handle = display(shown, display_id=True)  # type: ignore[no-untyped-call]  # nor here
        else:
            self._handle.update(shown)


def is_notebook() -> bool:
    """Whether this process is a notebook's kernel."""
    try:
        from IPython import get_ipython
    except ImportError:
        return False
    return getattr(get_ipython(), "kernel", None) is not None


def as_html(progress: Progress) -> str:
    """The view, without a script; every text in it is escaped."""
    done = progress.released / progress.rounds if progress.rounds else 0.0
    facts = [f"round {progress.released} of {progress.rounds or '?'}", progress.state]
    if progress.contributors:
        facts.insert(1, f"{progress.contributors} owners averaged")
    if progress.seconds:
        latest = sorted(progress.seconds[-5:])
        middle = latest[len(latest) // 2]
        facts.append(f"{middle:.2f} s a round")
        left = (progress.rounds - progress.released) * middle
        if left >= 1:
            facts.append(f"about {left:.0f} s left")
    curves = "".join(_curve(name, points) for name, points in sorted(progress.curves.items()))
    notes = "".join(
        f'<div style="color:#b45309">{html.escape(note)}</div>' for note in progress.notes
    )
    return (
        '<div style="font:13px system-ui,sans-serif;max-width:46em">'
        f"<strong>{html.escape(progress.job)}</strong> · {html.escape(' · '.join(facts))}"
        '<div role="progressbar" aria-label="rounds released" aria-valuemin="0"'
        f' aria-valuemax="{progress.rounds}" aria-valuenow="{progress.released}"'
        ' style="background:#8883;border-radius:3px;height:6px;margin:.4em 0">'
        f'<div style="background:#0f766e;border-radius:3px;height:6px;width:{done:.1%}"></div></div>'
        f'<div style="display:flex;flex-wrap:wrap;gap:1em">{curves}</div>{notes}'
        '<div style="opacity:.7">Only averages are shown: no owner\'s update or metric ever arrives here.</div></div>'
    )


def _curve(name: str, points: list[tuple[int, float]]) -> str:
    """One averaged metric over the rounds, with its last value."""
    last = points[-1][1]
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in _scaled(points))
    label = html.escape(name)
    return (
        f'<figure style="margin:0"><figcaption>{label} <strong>{last:.4g}</strong></figcaption>'
        f'<svg width="{_WIDTH}" height="{_HEIGHT}" role="img" aria-label="{label}, averaged, by round">'
        f'<polyline points="{path}" fill="none" stroke="#0f766e" stroke-width="2"/></svg></figure>'
    )


def _scaled(points: list[tuple[int, float]]) -> list[tuple[float, float]]:
    """The points within the figure, the first at its left edge."""
    numbers, values = [x for x, _ in points], [y for _, y in points]
    low, high = min(values), max(values)
    across, up = max(numbers[-1] - numbers[0], 1), (high - low) or 1.0
    margin = 3
    return [
        (
            margin + (x - numbers[0]) / across * (_WIDTH - 2 * margin),
            _HEIGHT - margin - (y - low) / up * (_HEIGHT - 2 * margin),
        )
        for x, y in points
    ]
