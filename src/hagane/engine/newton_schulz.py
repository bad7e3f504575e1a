"""Orthogonal update directions: a matrix's nearest orthogonal one, by matrix products alone.

The quintic Newton-Schulz iteration with the coefficients of Muon (Jordan et al. 2024,
https://kellerjordan.github.io/posts/muon/): five rounds bring singular values from the whole of (0, 1] to about
0.7..1.2, which trains as well as exactly 1, and needs no singular value decomposition and no fp32 on a GPU.
"""

from __future__ import annotations

import torch
from torch import Tensor

ROUNDS = 5
"""Iterations."""
COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Of x, x^3 and x^5: steep at zero, so that small singular values grow fast; it never converges to exactly 1."""
SMALLEST = 1e-7
"""Least Frobenius norm that is divided by: a matrix of zeros stays zeros."""


def orthogonalise(x_BMN: Tensor) -> Tensor:
    """U V^T, nearly, of each matrix of a stack [B, M, N] = U S V^T, in the stack's own dtype.

    The result does not depend on the scale of the input. Matrices are divided by their Frobenius norm first, which
    bounds their largest singular value by 1.
    """
    tall = x_BMN.shape[-2] > x_BMN.shape[-1]
    # the Gram matrix is taken over the shorter side
    x = x_BMN.mT if tall else x_BMN
    x = x / torch.linalg.matrix_norm(x, keepdim=True).clamp_min(SMALLEST)
    a, b, c = COEFFICIENTS
    for _ in range(ROUNDS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


def orthogonalise_flops(rows: int, columns: int) -> int:
    """Floating-point operations of `orthogonalise` on one matrix (2 a multiply-add; norms are not counted)."""
    short, long = sorted((rows, columns))
    return ROUNDS * (4 * short * short * long + 2 * short**3)
