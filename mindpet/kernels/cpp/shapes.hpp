// Shapes, and the complaint about one that does not fit.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

namespace mindpet {

using Shape = std::vector<std::int64_t>;
using Shapes = std::vector<Shape>;

inline std::string text(const Shape& shape) {
  std::string result;
  for (std::int64_t size : shape) result += (result.empty() ? "" : ", ") + std::to_string(size);
  return "(" + result + ")";
}

// Throws where `found` is not the expected shape. A size that is not known yet is negative and passes.
inline void require(const char* name, const Shape& found, const Shape& expected) {
  bool fits = found.size() == expected.size();
  for (std::size_t i = 0; fits && i < found.size(); ++i) {
    fits = found[i] == expected[i] || found[i] < 0 || expected[i] < 0;
  }
  if (!fits) {
    throw std::invalid_argument(std::string(name) + " has the shape " + text(found) + "; expected is " +
                                text(expected) + ": give tensors that fit.");
  }
}

inline void require_rank(const char* name, const Shape& shape, std::size_t rank) {
  if (shape.size() != rank) require(name, shape, Shape(rank, -1));
}

}  // namespace mindpet
