"""narrowtune with FSDP on CPUs, for tests: accelerate shares models out on accelerators only.

python -m accelerate.commands.launch … sharing_on_cpu.py teach run.yaml
"""

from __future__ import annotations

import runpy
from typing import Any

from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType

_init = AcceleratorState.__init__


def _share_on_cpu(self: AcceleratorState, *args: Any, **kwargs: Any) -> None:
    _init(self, *args, **kwargs)
    plugin = kwargs.get("fsdp_plugin")
    if plugin is not None and self.distributed_type == DistributedType.MULTI_CPU:
        self.distributed_type = DistributedType.FSDP
        self.fsdp_plugin = plugin


AcceleratorState.__init__ = _share_on_cpu
runpy.run_module("narrowtune", run_name="__main__", alter_sys=True)
