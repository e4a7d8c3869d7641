"""A run of `groundtune` whose FSDP splits the model over processes on a CPU, which accelerate does on GPUs only.

PyTorch's FSDP2 works on gloo. accelerate keeps its FSDP to GPUs, so here it is told that there are some.
"""

from __future__ import annotations

import sys
from typing import Any

from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType

import groundtune.recipes.train
from groundtune.cli import main

_init = AcceleratorState.__init__


def _with_fsdp(self: Any, *args: Any, fsdp_plugin: Any = None, **kwargs: Any) -> None:
    _init(self, *args, fsdp_plugin=fsdp_plugin, **kwargs)
    if self.distributed_type == DistributedType.MULTI_CPU and fsdp_plugin is not None:
        self.distributed_type = DistributedType.FSDP
        self.fsdp_plugin = fsdp_plugin


AcceleratorState.__init__ = _with_fsdp  # type: ignore[method-assign]
groundtune.recipes.train.sharding_problems = lambda training, model: []
if __name__ == "__main__":
    sys.exit(main())
