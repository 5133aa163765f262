"""One recipe a paper: what to run at which scale, the paper's own figures, and the table that comes out."""

PAPERS: dict[str, tuple[str, str]] = {
    "action-jacobian": (
        "trimtab.papers.action_jacobian",
        "Action Jacobian and linear policies (arXiv:2602.18312): control without high frequencies, on an arm",
    ),
    "mepoly": (
        "trimtab.papers.mepoly",
        "MePoly (arXiv:2602.17832): polynomial densities as policies, on bandits with many best actions",
    ),
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
