// Tensors for tests: they own their memory, speak double, start as NaN, and notice writes outside their elements.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "kerf/tensor.h"

namespace kerf::test {

/// Fixed seeds give the same numbers with every compiler and library.
class Random {
 public:
  explicit Random(std::uint64_t seed) : state_(seed) {}
  std::uint64_t bits();
  double uniform();                                           // [0, 1)
  double normal();                                            // N(0, 1)
  std::int64_t integer(std::int64_t low, std::int64_t high);  // [low, high]

 private:
  std::uint64_t state_;
};

/// A row-major array, each row followed by `padding` unused elements. Elements are numbered without the padding.
class Array {
 public:
  Array(DType dtype, std::vector<std::int64_t> shape, std::int64_t padding = 0);

  double operator[](std::int64_t i) const;
  void set(std::int64_t i, double x);  // rounds to the dtype
  std::int64_t size() const;
  DType dtype() const { return dtype_; }
  const std::vector<std::int64_t>& shape() const { return shape_; }
  TensorRef ref();
  std::vector<double> values() const;
  /// The bytes of the elements and the padding.
  std::vector<std::byte> bytes() const;

  /// NaN, or the smallest integer, or a byte that is no bool, everywhere.
  void poison();
  /// False once anything wrote in front of the array, behind it, or into the padding.
  bool surroundings_intact() const;

 private:
  std::size_t offset(std::int64_t i) const;
  std::int64_t columns() const;

  DType dtype_;
  std::vector<std::int64_t> shape_;
  std::int64_t padding_;
  std::vector<std::byte> memory_;
};

Array normal(Random& random, DType dtype, std::vector<std::int64_t> shape, double deviation = 1,
             std::int64_t padding = 0);
Array integers(Random& random, DType dtype, std::vector<std::int64_t> shape, std::int64_t low, std::int64_t high);

/// Relative errors of an output: ||out - ref|| / ||ref|| over everything, and the largest of the same over one row (the
/// last axis). Equal infinities and NaN beside NaN count as no error; any other such difference is an infinite error.
struct Error {
  double norm = 0, worst_row = 0;
};
Error error(const Array& out, const std::vector<double>& ref);

using NamedArrays = std::vector<std::pair<std::string, Array*>>;

}  // namespace kerf::test
