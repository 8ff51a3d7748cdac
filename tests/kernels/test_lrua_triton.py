"""The fused kernel for a GPU, in Triton's interpreter on the CPU, against the plain path.

The interpreter is chosen when Triton is imported, so it runs in a process of its own: this file.
"""

import importlib.util
import itertools
import os
import subprocess
import sys

import pytest


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")
def test_the_fused_kernel_equals_the_plain_path() -> None:
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    done = subprocess.run(
        [sys.executable, "-W", "error", __file__],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["equal"] * 4


def main() -> None:
    import torch

    from fewshot.kernels.lrua import ScanOptions, ScanState
    from fewshot.kernels.lrua_triton import scan
    from fewshot.memory.scan import TOLERANCE, largest_difference

    torch.set_num_threads(1)
    kinds = [(True, False, True, None), (True, True, False, 2.0), (False, False, False, 2.0)]
    for lstm, apart, shared, strength in kinds:
        options = ScanOptions(lstm, apart, shared, 0.9, strength)
        off = largest_difference(scan, torch.device("cpu"), options)
        print("equal" if off <= TOLERANCE / 50 else f"{options} is off by {off}")

    # Without gradients nothing is kept, and the numbers are the same.
    shapes = [(2, 3, 12), (2, 3, 10), (12, 7), (10, 3), (2, 7), (2, 3), (2, 5, 2)]
    tensors = [torch.randn(shape) for shape in shapes]
    state = ScanState(*tensors[4:], torch.full((2, 2, 5), 0.2), torch.zeros(2, 5))
    options = ScanOptions(True, True, False, 0.9, None)
    without = scan(*tensors[:4], state, options)
    kept = scan(tensors[0].requires_grad_(), *tensors[1:4], state, options)
    same = [
        torch.equal(one, other)
        for one, other in itertools.zip_longest((without[0], *without[1]), (kept[0], *kept[1]))
    ]
    print("equal" if all(same) else f"not the same without gradients: {same}")


if __name__ == "__main__":
    main()
