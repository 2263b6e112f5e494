# SPDX-License-Identifier: Apache-2.0
"""torch custom ops (``torch.ops.lowtide.*``): fake kernels and thin wrappers.

The wrappers do what a stable-ABI kernel cannot: they bump the version counters of mutated tensors, so that
autograd notices an in-place change, and refuse to change a leaf that requires grad. One module per family;
each op has a schema and CPU kernel in ``csrc/torch/<family>_ops.cc``, many a CUDA kernel in
``csrc/torch/cuda/<family>_ops.cc``.
"""

from __future__ import annotations

from lowtide.errors import LowtideImportError

try:
    import torch
except ImportError as error:
    raise LowtideImportError("lowtide.ops needs torch: pip install 'torch>=2.10'") from error
try:
    from lowtide import _ops  # noqa: F401  (registers the ops)
except ImportError as error:
    raise LowtideImportError(
        "this build of lowtide has no torch ops: reinstall a wheel that carries them, or build from source with "
        f"LOWTIDE_TORCH=1 pip install . ({error})"
    ) from error

from lowtide import _core

torch.ops.lowtide._set_isa(_core.active_isa_id())

from lowtide.ops import _cuda  # noqa: E402, F401  (registers the CUDA kernels)
from lowtide.ops.channels import channel_energy, ordered_sum  # noqa: E402
from lowtide.ops.combine import combine_  # noqa: E402
from lowtide.ops.curvature_ce import (  # noqa: E402
    curvature_ce_cumulant,
    curvature_ce_diagonal,
    curvature_ce_product,
    curvature_ce_product_,
    curvature_ce_trace,
    curvature_ce_weighted,
    curvature_ce_weighted_,
)
from lowtide.ops.curvature_krylov import curvature_lanczos_step_, curvature_project_  # noqa: E402
from lowtide.ops.curvature_probe import (  # noqa: E402
    curvature_sign_axpy_,
    curvature_sign_dot,
    curvature_sign_fill_,
    curvature_sign_fma_,
)
from lowtide.ops.curvature_vectors import curvature_axpby_, curvature_dot, curvature_fd_finish_  # noqa: E402
from lowtide.ops.dct import dct, dct_power, idct  # noqa: E402
from lowtide.ops.factored import (  # noqa: E402
    adafactor_,
    block_adam_,
    row_dots,
    scale_rows_,
    shear_rows_,
)
from lowtide.ops.gemv import gemv  # noqa: E402
from lowtide.ops.hadamard import hadamard, hadamard_back  # noqa: E402
from lowtide.ops.level_maps import (  # noqa: E402
    dequantize_map,
    dequantize_map_list_,
    quantize_map,
    quantize_map_list_,
)
from lowtide.ops.lowrank import rsvd  # noqa: E402
from lowtide.ops.matmul import Packed, matmul  # noqa: E402
from lowtide.ops.optim import (  # noqa: E402
    adam8_direction_,
    adam_direction_,
    adamw8_,
    adamw_,
    apply_update_,
    fused_direction_,
    fused_step_,
)
from lowtide.ops.quant import (  # noqa: E402
    dequantize_group,
    dequantize_group_list_,
    quantize_group,
    quantize_group_list_,
    requant_add_sr_,
    requant_add_sr_list_,
)
from lowtide.ops.random import random_add_, random_add_list_, random_dot, random_sample  # noqa: E402
from lowtide.ops.spsa_digest import spsa_digest  # noqa: E402
from lowtide.ops.spsa_fused_linear import spsa_fused_linear  # noqa: E402
from lowtide.ops.spsa_low_rank import spsa_low_rank_perturb, spsa_low_rank_replay_  # noqa: E402
from lowtide.ops.spsa_perturb import spsa_perturb, spsa_perturb_list, spsa_perturb_pair  # noqa: E402
from lowtide.ops.spsa_replay import spsa_replay_codes_, spsa_replay_list_  # noqa: E402

__all__ = [
    "Packed",
    "adafactor_",
    "adam8_direction_",
    "adam_direction_",
    "adamw8_",
    "adamw_",
    "apply_update_",
    "block_adam_",
    "channel_energy",
    "combine_",
    "curvature_axpby_",
    "curvature_ce_cumulant",
    "curvature_ce_diagonal",
    "curvature_ce_product",
    "curvature_ce_product_",
    "curvature_ce_trace",
    "curvature_ce_weighted",
    "curvature_ce_weighted_",
    "curvature_dot",
    "curvature_fd_finish_",
    "curvature_lanczos_step_",
    "curvature_project_",
    "curvature_sign_axpy_",
    "curvature_sign_dot",
    "curvature_sign_fill_",
    "curvature_sign_fma_",
    "dct",
    "dct_power",
    "dequantize_group",
    "dequantize_group_list_",
    "dequantize_map",
    "dequantize_map_list_",
    "fused_direction_",
    "fused_step_",
    "gemv",
    "hadamard",
    "hadamard_back",
    "idct",
    "matmul",
    "ordered_sum",
    "quantize_group",
    "quantize_group_list_",
    "quantize_map",
    "quantize_map_list_",
    "random_add_",
    "random_add_list_",
    "random_dot",
    "random_sample",
    "requant_add_sr_",
    "requant_add_sr_list_",
    "row_dots",
    "rsvd",
    "scale_rows_",
    "shear_rows_",
    "spsa_digest",
    "spsa_fused_linear",
    "spsa_low_rank_perturb",
    "spsa_low_rank_replay_",
    "spsa_perturb",
    "spsa_perturb_list",
    "spsa_perturb_pair",
    "spsa_replay_codes_",
    "spsa_replay_list_",
]
