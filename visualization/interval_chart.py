"""A chart of means with their intervals, a panel a score: what `scripts.compare_scores --figure` writes."""

from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure

from evaluation.comparison import Interval

_INCHES_A_RESULT, _INCHES_A_PANEL = 0.28, 3.2


def draw_intervals(
    results: Mapping[str, Mapping[str, Interval]], titles: Mapping[str, str], caption: str = ""
) -> Figure:
    """Return a figure with a panel a score and a row a result, the first at the top.

    Args:
        results: the intervals of a result by its label, then by score.
        titles: of the panels, by score.
        caption: what the points and bars are, above the panels.
    """
    labels = list(results)
    figure = Figure(
        figsize=(2 + _INCHES_A_PANEL * len(titles), 1 + _INCHES_A_RESULT * len(labels)), layout="constrained"
    )
    panels: Sequence = figure.subplots(1, len(titles), sharey=True, squeeze=False)[0]
    places = range(len(labels))
    for panel, (name, title) in zip(panels, titles.items(), strict=True):
        found = [results[label][name] for label in labels]
        means = [one.mean for one in found]
        reach = [[one.mean - one.low for one in found], [one.high - one.mean for one in found]]
        panel.errorbar(means, places, xerr=reach, fmt="o", color="#0072b2", ecolor="0.6", capsize=2, markersize=5)
        panel.set_xlabel(title)
        panel.grid(axis="x", color="0.9")
        panel.set_axisbelow(True)
        panel.margins(x=0.1)
    if caption:
        figure.suptitle(caption, fontsize="medium", parse_math=False)
    panels[0].set_yticks(places, labels, parse_math=False)
    panels[0].set_ylim(len(labels) - 0.5, -0.5)
    return figure
