"""One recipe a paper: what to run at which scale, the paper's own figures, and the table that comes out."""

PAPERS: dict[str, tuple[str, str]] = {
    "action-jacobian": (
        "trimtab.papers.action_jacobian",
        "Action Jacobian and linear policies (arXiv:2602.18312): control without high frequencies, on an arm",
    ),
    "data-to-online": (
        "trimtab.papers.comparison",
        "Eleven agents side by side on made data, and from it to online",
    ),
    "fino": (
        "trimtab.papers.fino",
        "FINO (arXiv:2602.18117): what noise in flow matching widens, and what choosing by value gains",
    ),
    "flow-ac": (
        "trimtab.papers.flow_ac",
        "FAC (arXiv:2602.18015): a flow's density keeps critics from dreaming",
    ),
    "gradient-coupling": (
        "trimtab.papers.gradient_coupling",
        "Gradient coupling (arXiv:2509.23870): what is right in one state spoils a like one, unless it is told apart",
    ),
    "gradient-regularization": (
        "trimtab.papers.gradient_regularization",
        "Gradient regularisation (arXiv:2602.18037): reward hacking stopped where no KL penalty does",
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

BUDGETED = ("data-to-online", "fino")
"""Papers whose `reproduce` also takes `offline_steps` and `online_steps`, of the runs that compare agents."""

SELECTIVE = ("data-to-online", "fino", "flow-ac", "reengage")
"""Papers whose `reproduce` also takes `only`, names of the settings or experiments to run."""
