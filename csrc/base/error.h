// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <stdexcept>
#include <string>

namespace lowtide {

enum class ErrorKind { value, type, runtime };

// Becomes lowtide.LowtideError (and ValueError / TypeError / RuntimeError) in Python.
class Error : public std::runtime_error {
 public:
  Error(ErrorKind kind, const std::string& what) : std::runtime_error(what), kind_(kind) {}
  ErrorKind kind() const { return kind_; }

 private:
  ErrorKind kind_;
};

inline void require(bool ok, const char* message) {
  if (!ok) throw Error(ErrorKind::value, message);
}

}  // namespace lowtide
