// SPDX-License-Identifier: Apache-2.0
// CRC32C (Castagnoli, polynomial 0x1EDC6F41 reflected), as in iSCSI (RFC 3720) and ext4: any single
// burst of 32 bits is found. crc32c("123456789") == 0xE3069283.
#pragma once
#include <cstddef>
#include <cstdint>

namespace lowtide {

// Continues `crc`, the value of what came before (0 for nothing): crc32c(b, n, crc32c(a, m)) is
// that of a then b.
uint32_t crc32c(const void* data, size_t size, uint32_t crc = 0);
// By table alone: the definition, and the oracle of the instruction's tests.
uint32_t crc32c_table(const void* data, size_t size, uint32_t crc = 0);

}  // namespace lowtide
