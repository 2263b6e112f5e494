// SPDX-License-Identifier: Apache-2.0
#include "base/crc32c.h"

#include <gtest/gtest.h>

#include <cstring>
#include <string>
#include <vector>

namespace lowtide {
namespace {

// RFC 3720, appendix B.4, and the check value of the CRC catalogue.
TEST(Crc32c, KnownAnswers) {
  EXPECT_EQ(crc32c("123456789", 9), 0xE3069283U);
  const std::vector<unsigned char> zeros(32, 0), ones(32, 0xFF);
  EXPECT_EQ(crc32c(zeros.data(), 32), 0x8A9136AAU);
  EXPECT_EQ(crc32c(ones.data(), 32), 0x62A8AB43U);
  EXPECT_EQ(crc32c(nullptr, 0), 0U);
}

TEST(Crc32c, InstructionEqualsTableForEveryLengthAndAlignment) {
  std::vector<unsigned char> data(300);
  uint32_t x = 12345;
  for (auto& b : data) b = static_cast<unsigned char>((x = x * 1664525U + 1013904223U) >> 24);
  for (size_t start = 0; start < 9; ++start)
    for (size_t n = 0; n + start <= data.size(); ++n)
      ASSERT_EQ(crc32c(data.data() + start, n), crc32c_table(data.data() + start, n))
          << start << " " << n;
}

TEST(Crc32c, Continues) {
  const std::string text = "one frame after another";
  for (size_t cut = 0; cut <= text.size(); ++cut)
    EXPECT_EQ(crc32c(text.data() + cut, text.size() - cut, crc32c(text.data(), cut)),
              crc32c(text.data(), text.size()));
}

TEST(Crc32c, FindsEveryFlippedBit) {
  std::vector<unsigned char> data(64, 0x5A);
  const uint32_t good = crc32c(data.data(), data.size());
  for (size_t bit = 0; bit < 8 * data.size(); ++bit) {
    data[bit / 8] ^= static_cast<unsigned char>(1U << (bit % 8));
    EXPECT_NE(crc32c(data.data(), data.size()), good) << bit;
    data[bit / 8] ^= static_cast<unsigned char>(1U << (bit % 8));
  }
}

}  // namespace
}  // namespace lowtide
