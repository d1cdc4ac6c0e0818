"""The dtypes that a delta layer stores and computes in."""

from mindspore import dtype as mstype

__all__ = ["VALID_TENSOR_DATATYPE"]

VALID_TENSOR_DATATYPE = [mstype.float16, mstype.float32, mstype.bfloat16]
