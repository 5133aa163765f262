"""One recipe a paper: what to run at which scale, the paper's own figures, and the table that comes out."""

PAPERS: dict[str, tuple[str, str]] = {
    "sac-flow": ("trimtab.papers.sac_flow", "SAC Flow (arXiv:2509.25756): steady gradients through a flow's rollout"),
}
"""Command-line name -> (module with `reproduce(scale, out)`, help line)."""
