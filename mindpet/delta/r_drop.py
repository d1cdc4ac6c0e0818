"""R-Drop: two passes with different dropout, drawn together by their divergence (arXiv:2106.14448)."""

import math

import mindspore
from mindspore import Tensor, nn, ops

__all__ = ["RDropLoss", "rdrop_repeat"]

_FLOATS = (mindspore.float16, mindspore.float32, mindspore.bfloat16)


class RDropLoss(nn.Cell):
    r"""Cross entropy of 2 N rows plus the divergence within each of the N pairs.

    loss = ce_loss + alpha * kl_loss, where `ce_loss` is the mean of the cross entropy over all 2 N rows (a row whose
    index label is -100 is left out, as nn.CrossEntropyLoss does), and `kl_loss` the mean over the N pairs of
    (KL(p || q) + KL(q || p)) / 4 with p and q the two rows' class probabilities. This is half of the paper's objective
    (its equation 4), so that `alpha` means what it means there, whatever the batch size: a sum over the batch would
    make the weight of the divergence grow with it. All is computed in float32, which the loss keeps.

    Inputs:
        - **logits** (Tensor) - of shape (2 N, classes), float16, float32 or, as an extension, bfloat16. The rows 2 i
          and 2 i + 1 belong to the same example, as `rdrop_repeat` arranges them.
        - **label_ids** (Tensor) - class indices, int32, with 2 N elements in any shape; or class probabilities,
          float16, float32 or bfloat16, of the shape of `logits`.
        - **alpha** (Union[int, float]) - the weight of the divergence. Default: 4.

    Outputs:
        Tensor, a float32 scalar.

    Raises:
        TypeError: `alpha` is no int or float; the dtype of `logits` or `label_ids` is none of those.
        ValueError: `alpha` is NaN or infinite; `logits` are no matrix with an even number of rows; `label_ids` do not
            fit them.
    """

    def construct(self, logits: Tensor, label_ids: Tensor, alpha: float = 4) -> Tensor:
        """Return the loss."""
        _check_alpha(alpha)
        _check_logits(logits)
        log_probabilities = ops.log_softmax(logits.astype(mindspore.float32), -1)
        if label_ids.dtype == mindspore.int32:
            ce_loss = ops.nll_loss(log_probabilities, _flatten_indices(label_ids, logits.shape[0]))
        else:
            ce_loss = -(_cast_probabilities(label_ids, logits.shape) * log_probabilities).sum(-1).mean()
        pairs = log_probabilities.reshape((-1, 2, logits.shape[1]))
        log_p, log_q = pairs[:, 0], pairs[:, 1]  # (N, classes)
        # KL(p || q) + KL(q || p) is the sum of (p - q) (log p - log q).
        divergence = ((ops.exp(log_p) - ops.exp(log_q)) * (log_p - log_q)).sum(-1)
        return ce_loss + alpha * divergence.mean() / 4


def _check_alpha(alpha: float) -> None:
    if isinstance(alpha, bool) or not isinstance(alpha, (int, float)):
        raise TypeError("`alpha` is no number; accepted is an int or a float. Pass 4, for example.")
    if not -math.inf < alpha < math.inf:
        raise ValueError("`alpha` is NaN or infinite; accepted is a finite number. Pass 4, for example.")


def _check_logits(logits: Tensor) -> None:
    if logits.dtype not in _FLOATS:
        raise TypeError(f"`logits` are {logits.dtype}; accepted is float16, float32 or bfloat16. Cast them.")
    if logits.ndim != 2 or logits.shape[0] % 2 != 0:
        raise ValueError(
            f"`logits` have the shape {logits.shape}; accepted is (2 N, classes). Repeat the inputs by rdrop_repeat."
        )


def _flatten_indices(label_ids: Tensor, rows: int) -> Tensor:
    if label_ids.size != rows:
        raise ValueError(
            f"`label_ids` hold {label_ids.size} indices for {rows} rows; accepted is one for each row. "
            "Repeat them with the inputs by rdrop_repeat."
        )
    return label_ids.reshape((-1,))


def _cast_probabilities(label_ids: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Return `label_ids` in float32; graph mode checks them first only if what follows needs the result."""
    if label_ids.dtype not in _FLOATS:
        raise TypeError(
            f"`label_ids` are {label_ids.dtype}; accepted is int32 for class indices, float16, float32 or bfloat16 for "
            "class probabilities. Cast them."
        )
    if label_ids.shape != shape:
        raise ValueError(
            f"`label_ids` have the shape {label_ids.shape}; accepted is that of the logits, {shape}. "
            "Repeat them with the inputs by rdrop_repeat."
        )
    return label_ids.astype(mindspore.float32)


def rdrop_repeat(*items: Tensor) -> tuple[Tensor, ...]:
    """Repeat each Tensor twice along axis 0, each row next to its copy, for `RDropLoss`.

    Args:
        *items: Tensors of shape (N, ...).

    Returns:
        As many Tensors of shape (2 N, ...), in which the rows 2 i and 2 i + 1 are equal.

    Raises:
        TypeError: an argument is no Tensor.
        ValueError: a Tensor has no axis.
    """
    repeated = []
    for item in items:
        if not isinstance(item, Tensor):
            raise TypeError(
                "An argument of rdrop_repeat is no Tensor; accepted are Tensors. Convert it by Tensor(...)."
            )
        if item.ndim == 0:
            raise ValueError("An argument of rdrop_repeat is a scalar; accepted is the shape (N, ...). Leave it out.")
        repeated.append(ops.stack((item, item), axis=1).reshape((-1, *item.shape[1:])))
    return tuple(repeated)
