# SPDX-License-Identifier: Apache-2.0
"""Names and signatures of other packages over the operators and estimators of this one."""

from __future__ import annotations

from lowtide.curvature.compat import pyhessian

__all__ = ["pyhessian"]
