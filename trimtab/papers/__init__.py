"""One recipe a paper: what to run at which scale, the paper's own figures, and the table that comes out."""

PAPERS: dict[str, tuple[str, str]] = {
    "reengage": (
        "trimtab.papers.reengage",
        "ReenGAGE (arXiv:2208.13298): critics that match their target's goal gradient",
    ),
    "seem": (
        "trimtab.papers.seem",
        "SEEM (arXiv:2310.04411): do values feed on themselves, when, and does LayerNorm help",
    ),
    "sac-flow": ("trimtab.papers.sac_flow", "SAC Flow (arXiv:2509.25756): steady gradients through a flow's rollout"),
}
"""Command-line name -> (module with `reproduce(scale, out)`, help line)."""
