# SPDX-License-Identifier: Apache-2.0
# Importing this module registers torch.ops.lowtide.*; it holds no names of its own.
