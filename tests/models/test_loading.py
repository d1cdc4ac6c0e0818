"""What the memory holds while weights become parameters."""

import tracemalloc

import numpy as np
import pytest
from mindspore import Parameter, Tensor

from mindpet.models._loading import load_parameters

SHAPE = (512, 256)


WEIGHTS = {
    "float32": lambda: np.ones(SHAPE, np.float32),
    "float16": lambda: np.ones(SHAPE, np.float16),
    "transposed": lambda: np.ones(SHAPE[::-1], np.float32).T,
}


@pytest.mark.parametrize("kind", WEIGHTS)
def test_an_array_is_freed_before_the_next_is_copied(tmp_path, kind):
    names = [str(number) for number in range(16)]
    parameters = {name: Parameter(Tensor(np.zeros(SHAPE, np.float32))) for name in names}
    tracemalloc.start()
    tensors = {name: WEIGHTS[kind]() for name in names}
    load_parameters(parameters, tensors, tmp_path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < sum(parameter.nbytes for parameter in parameters.values()) * (1 + 2 / len(names))
    assert all((parameter.asnumpy() == 1).all() for parameter in parameters.values())
