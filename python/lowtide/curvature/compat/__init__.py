# SPDX-License-Identifier: Apache-2.0
"""Names and signatures of other packages over the operators and estimators of this one."""
