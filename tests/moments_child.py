"""Collects second moments and kills itself with SIGKILL in its n-th forward pass.

python tests/moments_child.py TEXT FOLDER N [TOKENS]

TEXT may be "self"; then two sequences of five tokens are sampled at a time.
"""

from __future__ import annotations

import os
import signal
import sys

import torch

from easyeditor.second_moments import accumulate, checkpoint, moments, self_sampled
from support import lm


def main() -> None:
    text, folder, last = sys.argv[1], sys.argv[2], int(sys.argv[3])
    tokens = int(sys.argv[4]) if len(sys.argv) > 4 else 10**6
    torch.set_num_threads(1)
    checkpoint.MIN_INTERVAL_SECONDS = checkpoint.MIN_INTERVAL_WRITES = 0.0
    accumulate.TOKENS_PER_PASS = 32
    self_sampled.SAVE_SECONDS, self_sampled.ROWS, self_sampled.LENGTH = 0.0, 2, 5
    target, passes = lm("llama"), 0

    def count(_module: object, _args: object) -> None:
        nonlocal passes
        passes += 1
        if passes == last:
            os.kill(os.getpid(), signal.SIGKILL)

    target.blocks[0].register_forward_pre_hook(count)
    moments(target, [0, 2], source=text, tokens=tokens, directory=folder)


if __name__ == "__main__":
    main()
