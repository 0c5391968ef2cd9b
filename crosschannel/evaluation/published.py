"""Published results of Zhang, Isola, Efros (ECCV 2016), Table 1: ImageNet at 256 × 256 pixels, one Titan X."""

# Percentage of trials in which people were fooled; indistinguishable colours would reach 50 %.
FOOLED = {
    "random": 13.0,
    "Dahl 2016": 18.3,
    "Larsson et al. 2016": 27.2,
    "L2": 21.2,
    "L2, ft": 23.9,
    "class": 25.2,
    "full": 32.3,
}
HEAD = (
    "Raw AuC, %",
    "Rebalanced AuC, %",
    "VGG-16 top-1, %",
    "Parameters, MB",
    "Features, MB",
    "Runtime, ms",
    "People fooled, %",
)

# Values by method for all columns of HEAD but the last, which is FOOLED. None: not reported.
TABLE_1: dict[str, tuple[float | None, ...]] = {
    "ground truth": (100.0, 100.0, 68.3, None, None, None),
    "grey": (89.1, 58.0, 52.7, None, None, None),
    "random": (84.2, 57.3, 41.0, None, None, None),
    "Dahl 2016": (90.4, 58.9, 48.7, None, None, None),
    "Larsson et al. 2016": (91.7, 65.9, 59.4, 588.0, 495.0, 122.1),
    "L2": (91.2, 64.4, 54.9, 129.0, 127.0, 17.8),
    "L2, ft": (91.5, 66.2, 56.5, 129.0, 127.0, 17.8),
    "class": (91.6, 65.1, 56.6, 129.0, 142.0, 22.1),
    "full": (89.5, 67.3, 56.0, 129.0, 142.0, 22.1),
    "VGG-16 fine-tuned on grey": (None, None, 63.5, None, None, None),
}


def cell(head: str, value: float | None) -> str:
    """Format a value as in the paper: megabytes without decimals, other units with one."""
    if value is None:
        return "–"
    return f"{value:.0f}" if head.endswith("MB") else f"{value:.1f}"
