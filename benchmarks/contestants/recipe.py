"""One training recipe for all contestants that train the encoder, and the constants of the others."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """Common values, the same for every contestant that uses them.

    Learning rate and EWC's λ were chosen on validation rows of one order (`--eval val --orders 10x15 --seeds 0 --recipe
    NAME=VALUE`): replay has 92.9, 94.6 and 93.5 % with rates of 0.0005, 0.001 and 0.002; replay with EWC
    94.3 and 93.1 % with a λ of 100 and 1,000 (and on a fifth of the rows 10 and 10,000 were worse).
    """

    rank: int = 8
    """Of LoRA, on all linear maps of the encoder's layers."""
    alpha: int = 16
    learning_rate: float = 1e-3
    """Peak of AdamW for LoRA and head: warm-up over the first tenth of a session's steps, then cosine."""
    full_learning_rate: float = 1e-4
    """The same where all of the encoder is trained."""
    batch: int = 32
    epochs: int = 4
    """Over a session's rows; half as many where half of each batch is replay, so that the cost is the same."""
    scratch_epochs: int = 10
    """Over the memory, for a contestant that trains on nothing else."""
    head_scale: float = 16.0
    """Embeddings have length 1; the head sees this many times of them."""
    ewc: float = 100.0
    """λ in (λ/2)·Σ F·(θ−θ*)²."""
    fisher_decay: float = 0.9
    """γ in F = γ·F + F_new."""
    fisher_rows: int = 256
    """Rows that the Fisher information of a session is estimated on."""
    der_alpha: float = 0.5
    der_beta: float = 0.5
    shrinkage: float = 0.1
    """Of the covariance towards its mean variance, for streaming LDA."""
    neighbours: int = 5
    random_features: int = 5000
    bandwidth: float = 1.0
    """Length scale of the Gaussian kernel on the unit sphere that the random features approximate."""
    ridge: float = 0.1
    all_random_features: int = 8192
    """This and the two below: the same for the means of all layers."""
    all_bandwidth: float = 1.4
    all_ridge: float = 0.03
    similarity_scale: float = 16.0
    """What cosines are multiplied by before a softmax, where a method has no probabilities of its own."""
    ridge_scale: float = 10.0
    """The same for the outputs of the ridge regression, which aim at 0 and 1."""
