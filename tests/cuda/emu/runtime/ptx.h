// SPDX-License-Identifier: Apache-2.0
// Everything translated PTX needs; the generated files include only this.
#pragma once

#include "alu.h"
#include "atomics.h"
#include "convert.h"
#include "machine.h"
#include "memory.h"
#include "sync.h"
