# SPDX-License-Identifier: Apache-2.0
"""Translate the PTX that nvcc generated into C++ that runs on the emulator, refusing what is not bit-exact."""
