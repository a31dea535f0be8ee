"""How strong the sparsity penalty is at a step."""


def ramp(step: int, ramp_steps: int) -> float:
    """Grow quadratically from 0 to 1: min(1, step / ramp_steps)^2.

    A full penalty at the first step would push all weights to zero before ranking has found any term.

    Source: SPLADE (arXiv:2107.05720), section 3.2; the same in every trainer of its kind.

    Args:
        step: finished optimizer steps.
        ramp_steps: T; 0 means full strength at once.
    """
    return 1.0 if ramp_steps == 0 else min(1.0, step / ramp_steps) ** 2
